"""Ensembles on our models, as `config.attack` says."""

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import outcome, robustness
from vmoe_robust.evaluate.attack import make
from vmoe_robust.evaluate.ensembled import Ensembled
from vmoe_robust.evaluate.kept import Kept, identity


@pytest.fixture
def attacking(config):
  config.attack.update(dict(name='apgd_ce+square', eps=(0.1,), steps=5))
  config.attack.update(dict(queries=10, save_images=True))
  return config


def test_records_are_those_of_the_model(attacking, in_memory, model_of):
  model, params = model_of(attacking)
  source, program = in_memory(13), make(model, attacking)
  assert isinstance(program, Ensembled)
  found = program(params, source, None, {})
  columns = found.columns
  assert columns['index'].tolist() == list(range(13))
  x_adv = jnp.asarray(columns['x_adv'].reshape(-1, 8, 8, 1))
  logits, _ = model.apply(params, x_adv)
  np.testing.assert_array_equal(columns['prediction_after'], logits.argmax(-1))
  right = columns['prediction_after'] == columns['label']
  results = outcome.summarise(found, attacking)
  (one,) = results['attacks']['apgd_ce+square_linf'].values()
  assert one['robust_accuracy'] == right.mean()
  assert one['robust_after']['square'] == one['robust_accuracy']
  assert set(one['routing']) == {'encoderblock_0', 'encoderblock_1'}
  low, high = one['robust_accuracy_interval']
  assert low <= right.mean() <= high
  fell = (columns['prediction_before'] == columns['label']) & ~right
  assert (columns['fallen_in'][fell] >= 0).all()
  # Other weights, the same programs.
  again = program(params, source, None, {})
  np.testing.assert_array_equal(again.columns['x_adv'], columns['x_adv'])


def test_half_precision_is_judged_in_full(attacking, in_memory, model_of):
  attacking.attack.compute_dtype = 'bfloat16'
  model, params = model_of(attacking)
  columns = make(model, attacking)(params, in_memory(8), None, {}).columns
  x_adv = jnp.asarray(columns['x_adv'].reshape(-1, 8, 8, 1))
  logits, _ = model.apply(params, x_adv)
  np.testing.assert_array_equal(columns['prediction_after'], logits.argmax(-1))


def test_several_labels_are_refused(attacking, model_of):
  attacking.train.loss = 'sigmoid'
  model, _ = model_of(attacking)
  with pytest.raises(UserError, match="config.train.loss='sigmoid'"):
    make(model, attacking)


def test_a_whole_attack_goes_on_after_its_last_batch(
  config, in_memory, model_of, tmp_path
):
  from vmoe_robust.data import eval_batches
  from vmoe_robust.mesh import batch_sharding

  model, params = model_of(config)
  source, place = in_memory(24), batch_sharding(model.module.mesh)
  program = robustness.Program(model, config)

  def run(folder, on_batch=lambda *_: None, step=3):
    kept = Kept(folder, identity(config, step, None))
    batches = eval_batches(config.data, source, batch_size=8, sharding=place)
    try:
      return robustness.run(program, params, batches, on_batch, kept)
    finally:
      batches.close()

  def stop(done, _):
    if done == 3:
      raise KeyboardInterrupt

  expected = run(None)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, stop)
  assert len(list(tmp_path.glob('*.npz'))) == 3
  found = run(tmp_path)
  for name, column in expected.columns.items():
    np.testing.assert_array_equal(found.columns[name], column, name)
  for eps, loads in expected.loads.items():
    for name, load in loads.items():
      np.testing.assert_array_equal(found.loads[eps][name], load)
  with pytest.raises(UserError, match='step is 4 here and was 3'):
    run(tmp_path, step=4)
  config.attack.steps = 5
  with pytest.raises(UserError, match='config.attack.steps is 5 here and was'):
    run(tmp_path)
