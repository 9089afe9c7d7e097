import numpy as np
import pytest

from tests.studies.conftest import patches
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.evaluate.job import write
from vmoe_robust.report.results import read_results
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.studies import routing_change


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'routing_change'
  config.study.routing_change.batch_size = 8
  return config


@pytest.mark.slow
def test_the_attack_is_that_of_the_attack_mode(
  config, in_memory, model_of, opened, tmp_path, check_form
):
  model, params = model_of(config)
  source = in_memory(11)
  job = opened(config, source, model, params, tmp_path)
  write(job, routing_change.run(job))
  results = check_form(tmp_path)
  swept = Attacker(model, config)(params, source, Unfinished(None, {}))
  for row in results['rows'][1:]:
    here = np.isclose(swept.columns['eps'], row['eps'])
    after = swept.columns['prediction_after'][here]
    right = after == swept.columns['label'][here]
    assert row['accuracy']['value'] == pytest.approx(right.mean())
    for block in ('encoderblock_0', 'encoderblock_1'):
      for ours, theirs in (
        ('selected', 'routing_change'),
        ('official', 'routing_change_official'),
      ):
        expected = swept.columns[f'{theirs}/{block}'][here].mean()
        assert row[ours][block]['value'] == pytest.approx(expected, abs=1e-6)
        assert expected > 0
  assert results['rows'][0]['selected']['encoderblock_0']['value'] == 0


def test_a_dense_model_is_told(config, in_memory, model_of, opened):
  config.model.experts = 0
  model, params = model_of(config)
  with pytest.raises(UserError, match='asks about experts.*is dense'):
    routing_change.run(opened(config, in_memory(8), model, params))


@pytest.mark.slow
def test_it_shows_the_tokens_that_changed(
  config, in_memory, two_experts, opened, tmp_path
):
  """Of a router in closed form, and as the records have it."""
  config.attack.eps = (0.3,)
  w = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
  outputs = np.random.default_rng(1).normal(size=(2, 16))
  job = opened(config, in_memory(24), *two_experts(w, 1.0, outputs), tmp_path)
  write(job, routing_change.run(job))
  with np.load(tmp_path / 'figures' / 'examples.npz') as file:
    found = dict(file)
  for images, experts in (('images', 'before'), ('x_adv', 'after')):
    z = (w * (2 * patches(found[images]) - 1)).sum((-1, -2))
    wanted = np.where(z > 0, 0, 1)
    assert found[f'experts_{experts}'][:, 0, :, 0].tolist() == wanted.tolist()
  changed = found['experts_before'] != found['experts_after']
  assert 0 < changed.mean() < 1
  records = read_results(tmp_path).records.to_pylist()
  after, before = (
    {r['index']: r for r in records if r['condition'] == condition}
    for condition in (str(found['condition']), 'clean')
  )
  for place, index in enumerate(found['index'].tolist()):
    share = after[index]['selected/encoderblock_0']
    assert changed[place].mean() == pytest.approx(share)
    # Those that fell, if any did.
    assert found['before'][place] == 'abcd'[before[index]['prediction_after']]
    assert found['after'][place] == 'abcd'[after[index]['prediction_after']]
  assert (tmp_path / 'figures' / 'examples.png').exists()
