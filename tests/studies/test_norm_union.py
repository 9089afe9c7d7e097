import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, default, validate
from vmoe_robust.evaluate.job import write
from vmoe_robust.models import Model
from vmoe_robust.studies import norm_union
from vmoe_robust.studies.conditions import of


class Linear(Model):
  """Two classes that count, by the mean pixel less 1/2."""

  def apply(self, params, images, experts, mask):
    score = 100 * (images.mean((1, 2, 3)) - 0.5)
    return jnp.stack([score, -score, *2 * [-1e3 + 0 * score]], -1), None


@dataclasses.dataclass
class Flat:
  """Images of one grey each, at known distances from the boundary."""

  greys = np.array([140, 150, 160, 170, 190, 250], np.uint8)
  num_classes, channels, multi_label = 4, 1, False
  fingerprint, lengths = 'of a test', {}
  class_names = ('a', 'b', 'c', 'd')

  def __len__(self):
    return len(self.greys)

  def __getitem__(self, i):
    return {'image': np.full((8, 8, 1), self.greys[i]), 'label': 0}

  def describe(self, i):
    return f'example {i}'


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'norm_union'
  config.study.norm_union.update(dict(batch_size=6, linf=0.1, l2=1.1, l1=5.0))
  config.attack.update(dict(steps=30, eps=default().attack.eps))
  return config


@pytest.mark.slow
def test_a_linear_model_falls_where_it_must(
  config, model_of, opened, tmp_path, check_form
):
  """Of a mean of 64 pixels the distance m costs m, 8 m and 64 m."""
  model = Linear(model_of(config)[0].module, (8, 8, 1))
  source = Flat()
  job = opened(config, source, model, {}, tmp_path)
  findings = norm_union.run(job)
  write(job, findings)
  results = check_form(tmp_path)
  far = source.greys / 255 - 0.5
  broken = {
    'clean': far < 0,
    'linf': far <= 0.1,
    'l2': 8 * far <= 1.1,
    'l1': 64 * far <= 5.0,
  }
  broken['union'] = np.any(list(broken.values()), axis=0)
  for name, expected in broken.items():
    wrong = of(findings.columns, name)['prediction_after'] != 0
    np.testing.assert_array_equal(wrong, expected, name)
  by = {row['condition']: row for row in results['rows']}
  assert by['l2']['broken_by_it_alone']['value'] == pytest.approx(1 / 6)
  assert by['linf']['broken_by_it_alone']['value'] == 0
  assert by['l1']['more_than_the_union']['only_first'] == 2
  assert results['summary']['union'] == by['union']['accuracy']


@pytest.mark.slow
def test_no_radius_no_change(config, in_memory, model_of, opened):
  config.model.experts = 0  # dense models have norms too
  config.study.norm_union.update(dict(linf=0.0, l2=0.0, l1=0.0, batch_size=8))
  config.attack.steps = 1
  model, params = model_of(config)
  rows = norm_union.run(opened(config, in_memory(8), model, params)).rows
  assert all(row['accuracy'] == rows[0]['accuracy'] for row in rows)


@pytest.mark.parametrize(
  ('name', 'value'),
  [('name', 'paper'), ('step_size', 0.1), ('eps', (0.1,)), ('norm', 'l1')],
)
def test_an_attack_of_one_norm_is_told(
  config, in_memory, model_of, opened, name, value
):
  config.attack[name] = value
  job = opened(config, in_memory(8), *model_of(config))
  with pytest.raises(UserError, match=f'config.attack.{name}=.*three norms'):
    norm_union.run(job)


def test_radii_that_are_none_are_refused(config):
  config.study.norm_union.linf = 8.0
  with pytest.raises(UserError, match=r'norm_union\.linf=8\.0 is above 1'):
    validate(config, 1)
