"""Numbers of an attack in the one form of results."""

import json

import jsonschema
import numpy as np
import pytest

from vmoe_robust.config import UserError, default, from_json, to_json
from vmoe_robust.evaluate import attack, finished, job
from vmoe_robust.report.results import SCHEMA, read_results
from vmoe_robust.robustness import findings
from vmoe_robust.robustness.sweep import Fall, Swept


@pytest.fixture
def attacked(config):
  """Four images, of which one falls and one has no finite logit after."""
  config.attack.update(name='apgd_ce+square', eps=(0.25,))
  number = lambda *values: np.array(values, np.float32)
  columns = {
    'index': np.array([3, 0, 1, 2]),
    'eps': np.full(4, 0.25),
    'label': np.array([0, 0, 1, 2]),
    'prediction_before': np.array([0, 0, 1, 1], np.int32),
    'prediction_after': np.array([-1, 0, 2, 1], np.int32),
    'loss_before': number(0, 1, 2, 3),
    'loss_after': number(np.nan, 1, 3, 3),
    'linf': number(0.25, 0.1, 0, 0),
    'l2': number(1, 0.1, 0, 0),
    'l1': number(4, 0.1, 0, 0),
    'in_ball': np.ones(4, bool),
    'in_range': np.ones(4, bool),
  }
  fall = Fall(0.25, {'apgd_ce': 0.5, 'square': 0.25}, {'apgd_ce': 2.0})
  return Swept(columns, {}, [4], 12.5, {0.25: fall}, ['beware'], None)


def test_numbers_of_four_images(attacked, config):
  found = findings.findings(attacked, attack.asked(config))
  assert found.summary['clean_accuracy']['value'] == 0.75
  assert found.summary['clean_loss']['value'] == 1.5
  (row,) = found.rows
  assert row['robust_accuracy']['value'] == row['error_after']['value'] / 3
  assert row['robust_accuracy'] == row['per_attack']['square']['robust_after']
  assert row['per_attack']['apgd_ce']['robust_after']['value'] == 0.5
  assert row['per_attack']['apgd_ce']['seconds'] == 2
  assert row['prediction_changes']['value'] == 0.5 and row['not_finite'] == 1
  assert row['loss_after'] == dict(value=None, interval=None, n=4)
  assert found.columns['index'].tolist() == [0, 1, 2, 3]
  assert set(found.columns['condition']) == {row['condition']}


def test_written_read_and_shown(
  attacked, config, in_memory, model_of, opened, tmp_path
):
  config.mode = 'attack'
  source = in_memory(5)
  here = opened(config, source, *model_of(config), tmp_path)
  found = findings.findings(attacked, attack.asked(config), source.class_names)
  job.write(here, found)
  results = read_results(tmp_path)
  schema = json.loads(SCHEMA.read_text())
  jsonschema.Draft202012Validator.check_schema(schema)
  jsonschema.Draft202012Validator(schema).validate(dict(results))
  assert results['data']['examples'] == 4
  assert results['data']['skipped'] == dict(count=1, names=['example 4'])
  assert results.records['prediction_after'].to_pylist() == [0, 2, 1, -1]
  table = findings.render(results)
  assert '25.0%' in table and '4.6 to 69.9' in table and 'not finite' in table
  assert finished.finished(config, tmp_path, findings.render, 3)
  with pytest.raises(UserError, match='step 4 .was 3'):
    finished.finished(config, tmp_path, findings.render, 4)


def test_a_figure_that_cannot_be_drawn_ends_nothing(
  attacked, config, in_memory, model_of, opened, tmp_path, monkeypatch, caplog
):
  here = opened(config, in_memory(5), *model_of(config), tmp_path)
  found = findings.findings(attacked, attack.asked(config))

  def fail(self, path):
    raise ValueError('no such colour')

  monkeypatch.setattr(type(found.figures[0]), 'draw', fail)
  job.write(here, found)
  (figure,) = read_results(tmp_path)['files']['figures']
  assert figure['picture'] is None and (tmp_path / figure['data']).exists()
  assert 'no such colour' in caplog.text


def test_saved_groups_of_earlier_names_are_studies(config):
  saved = json.loads(to_json(config))
  study = saved.pop('study')
  study['certificates']['n'] = 77
  saved |= dict(corrupt=study['corruptions'], certify=study['certificates'])
  found = from_json(json.dumps(saved | dict(version=0)))
  assert found.study.certificates.n == 77


@pytest.mark.parametrize(
  ('fields', 'experts'),
  [
    ({}, 'capacity'),
    ({'experts': 0}, 'dropless'),
    ({'router.name': 'soft'}, 'dropless'),
  ],
)
def test_only_what_shares_capacity_is_said_to(fields, experts):
  config = default()
  config.mode = 'attack'
  config.attack.experts = 'capacity'
  config.model.experts = 4
  config.model.update_from_flattened_dict(fields)
  assert job.asked(config)['experts'] == experts
  config.attack.experts = 'dropless'
  assert job.asked(config)['experts'] == 'dropless'
