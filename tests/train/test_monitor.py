"""Selection on held-out images, and the alarm."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.conftest import InMemory, config, model_of
from vmoe_robust.checkpoint import Checkpoints
from vmoe_robust.config import UserError
from vmoe_robust.data.rows import Rows
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.train import loop, measuring, start
from vmoe_robust.train.monitor import Monitor

__all__ = ['config', 'model_of']


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 4, 1)])
def test_it_finds_what_an_attack_of_the_attack_mode_finds(
  config, model_of, shape
):
  config.train.monitor.update(dict(eps=0.01, steps=4, examples=11))
  config.attack.update(dict(eps=(0.01,), steps=4, restarts=1))
  model, params = model_of(config, shape)
  source = InMemory(11)
  monitor = Monitor(model, config, source)
  swept = Attacker(*model_of(config)[:1], config)(
    model_of(config)[1], source, Unfinished(None, {})
  )
  after = swept.columns['prediction_after']
  right = (after == swept.columns['label']).mean()
  assert monitor(params, 1) == {'robust_accuracy/0.01': pytest.approx(right)}
  assert 0 < right < 1


@pytest.mark.slow
def test_it_does_not_depend_on_what_the_run_attacks_with(config, model_of):
  config.train.monitor.update(dict(eps=0.01, steps=1, examples=8))
  model, params = model_of(config)
  plain = Monitor(model, config, InMemory(8))(params, 1)
  config.attack.update(
    dict(name='autoattack', at_end=False, every_steps=5, queries=7),
    batch_size=4, compute_dtype='bfloat16', save_images=True, momentum=0.5,
    target='random', experts='capacity', class_weight=0.0, auxiliary_weight=1.0,
  )  # fmt: skip
  assert Monitor(model, config, InMemory(8))(params, 1) == plain


@pytest.mark.slow
def test_a_fall_warns_or_stops(config, model_of, caplog):
  config.train.monitor.update(dict(eps=0.01, steps=1, examples=8))
  model, params = model_of(config)
  source = InMemory(8)
  rows = Rows(source, config.data)
  images = rows(np.arange(8))['image']
  rows.close()
  x = jnp.asarray(images / np.float32(255))
  logits, _ = jax.jit(model.apply)(params, x)
  source.labels = np.asarray(logits.argmax(-1))
  lost = jax.tree.map(lambda w: w * np.nan, params)  # not finite is wrong
  monitor = Monitor(model, config, source)
  (high,) = monitor(params, 10).values()
  assert high > 0.5 and not caplog.records
  assert monitor(lost, 20) == {monitor.name: 0.0}
  assert f'fell from {high:.1%} to 0.0% by step 20' in caplog.text
  config.train.monitor.on_fall = 'stop'
  resumed = Monitor(model, config, source, best=monitor.best)
  with pytest.raises(UserError, match='catastrophic overfitting.*on_fall'):
    resumed(lost, 20)


@pytest.mark.slow
def test_a_run_selects_on_the_validation_part_alone(tmp_path, config):
  """The test split is looked at once, at the end."""
  looked = []
  was = measuring.eval_batches

  def watched(data, source, **how):
    looked.append(len(source))
    return was(data, source, **how)

  config.update_from_flattened_dict(
    {
      'model.num_classes': 0,
      'model.channels': 0,
      'data.validation': 0.1,
      'data.image_size': 8,
      'train.steps': 6,
      'train.log_every': 2,
      'train.batch_size': 32,
      'train.monitor.eps': 0.05,
      'train.monitor.examples': 40,
      'eval.every_steps': 2,
      'save.best': 'robust_accuracy/0.05',
      'save.keep': 1,
      'attack.at_end': False,
    }
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measuring, 'eval_batches', watched)
    loop.run(config, str(tmp_path))
  assert looked == [144, 144, 144, 360]
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  found = {}
  for line in map(json.loads, lines):
    found.setdefault(line['step'], {}).update(line)
  robust = {
    step: line['robust_accuracy/0.05']
    for step, line in found.items()
    if line.get('robust_accuracy/0.05') is not None
  }
  assert sorted(robust) == [2, 4, 6]
  best = max(robust, key=robust.get)
  assert Checkpoints(tmp_path).steps() == sorted({best, 6})
  assert 'test_accuracy' in found[6] and 'test_accuracy' not in found[4]


def test_what_is_measured_stays_the_same_when_a_run_goes_on(config):
  other = config.copy_and_resolve_references()
  other.attack.update(dict(norm='l2', steps=9, save_images=True))
  changed = lambda: [
    text.split('=')[0] for text in start._measured_otherwise(other, config)
  ]
  assert changed() == []  # nothing depends on it
  other.train.monitor.eps = 0.1
  assert changed() == ['config.attack.norm']
  other.save.best = 'robust_accuracy/0.1'
  assert sorted(changed()) == ['config.attack.norm', 'config.attack.steps']
  other.train.monitor.eps = 0
  other.save.best = 'eval_accuracy'
  other.eval.update(batch_size=7, every_steps=3)
  assert changed() == []
  other.eval.experts = 'capacity'
  other.data.eval_split = 'test[:9]'
  assert sorted(changed()) == [
    'config.data.eval_split',
    'config.eval.experts',
  ]
  other.data.validation = 0.1  # which is then measured, not the test
  assert 'config.data.eval_split' not in changed()
