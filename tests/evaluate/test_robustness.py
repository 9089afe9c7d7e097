import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import accuracy, outcome, robustness
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import losses
from vmoe_robust.report.records import read_records


def attacked(config, source, model, params):
  batches = eval_batches(
    config.data,
    source,
    batch_size=config.train.batch_size,
    sharding=batch_sharding(model.module.mesh),
  )
  program = robustness.Program(model, config)
  found = robustness.run(program, params, batches)
  batches.close()
  return found


def test_every_example_once(config, in_memory, model_of):
  model, params = model_of(config)
  found = attacked(config, in_memory(19), model, params)
  columns = found.columns
  assert found.images_per_second > 0 and not found.corrupt
  for eps in config.attack.eps:
    rows = columns['eps'] == eps
    assert sorted(columns['index'][rows]) == list(range(19))
  assert columns['in_ball'].all() and columns['in_range'].all()


def test_one_program_serves_a_whole_sweep(config, in_memory, model_of):
  model, params = model_of(config)
  program = robustness.Program(model, config)
  place = batch_sharding(model.module.mesh)
  batches = list(
    eval_batches(config.data, in_memory(16), batch_size=8, sharding=place)
  )
  compiled = program(params, batches[0])
  assert program(params, batches[1]) is compiled
  batch = batches[0]
  distance = []
  for eps in (0.01, 0.3):
    out = compiled(params, batch, jnp.float32(eps))[2]
    distance.append(float(out['linf'].max()))
  np.testing.assert_allclose(distance, [0.01, 0.3], atol=1e-6)


def test_what_leaves_its_bounds_is_not_reported(config, in_memory, model_of):
  model, params = model_of(config)
  score = jax.jit(robustness.score_program(model, config))
  place = batch_sharding(model.module.mesh)
  (batch,) = eval_batches(
    config.data, in_memory(8), batch_size=8, sharding=place
  )
  x = batch['image'].astype(jnp.float32) / 255
  for x_adv, broken in (
    (jnp.clip(x + 0.2, 0, 1), 'in_ball'),
    (jnp.where(x == x.min(), -0.05, x), 'in_range'),
    (x * jnp.nan, 'in_ball'),
    (x * jnp.nan, 'in_range'),
  ):
    out, _ = score(params, batch, x_adv, jnp.float32(0.1))
    assert not out[broken].all()
    row = {k: np.asarray(v) for k, v in out.items()}
    row |= {'index': np.arange(8), 'eps': np.full(8, 0.1)}
    with pytest.raises(RuntimeError, match='is not in_'):
      robustness._require_bounds(row)


def test_records_are_those_of_the_model(config, in_memory, model_of):
  """Judged again from the saved x_adv, by calling the model directly."""
  config.attack.save_images = True
  model, params = model_of(config)
  source = in_memory(8)
  columns = attacked(config, source, model, params).columns
  for eps in config.attack.eps:
    rows = columns['eps'] == eps
    x_adv = jnp.asarray(columns['x_adv'][rows].reshape(-1, 8, 8, 1))
    logits, _ = model.apply(params, x_adv)
    np.testing.assert_array_equal(
      columns['prediction_after'][rows], logits.argmax(-1)
    )
    wanted = jax.nn.one_hot(columns['label'][rows], 4)
    np.testing.assert_allclose(
      columns['loss_after'][rows],
      losses.classification(logits, wanted, 'softmax'),
      rtol=1e-5,
    )
    x = source.images / np.float32(255)
    np.testing.assert_allclose(
      columns['linf'][rows], np.abs(x_adv - x).max((1, 2, 3)), atol=1e-7
    )
    assert (columns['loss_after'][rows] >= columns['loss_before'][rows]).any()


@pytest.mark.parametrize('batch_size', [8, 24])
def test_results_do_not_depend_on_batch_or_mesh(
  config, in_memory, model_of, batch_size
):
  source = in_memory(24)
  model, params = model_of(config)
  alone = attacked(config, source, model, params).columns
  config.train.batch_size = batch_size
  model, _ = model_of(config, (2, 4, 1) if batch_size == 8 else (1, 1, 1))
  spread = attacked(config, source, model, params).columns
  order = lambda c: np.lexsort((c['index'], c['eps']))
  a, b = order(alone), order(spread)
  for name in ('prediction_before', 'prediction_after', 'label'):
    np.testing.assert_array_equal(alone[name][a], spread[name][b])
  np.testing.assert_allclose(
    alone['loss_before'][a], spread['loss_before'][b], atol=1e-5
  )
  # A sign of a gradient near zero may differ, and with it some pixels.
  differ = np.abs(alone['loss_after'][a] - spread['loss_after'][b]) > 1e-3
  assert differ.mean() <= 0.05


def test_routing_without_attack_is_unchanged(config, in_memory, model_of):
  config.attack.eps = (0.0,)
  config.attack.experts = 'capacity'
  model, params = model_of(config)
  found = attacked(config, in_memory(11), model, params)
  columns, loads = found.columns, found.loads
  for block in ('encoderblock_0', 'encoderblock_1'):
    assert (columns[f'routing_change/{block}'] == 0).all()
    assert (columns[f'routing_change_kept/{block}'] == 0).all()
    kept = loads[0.0][f'load_before/{block}'].sum()
    share = 1 - columns[f'dropped_before/{block}'].mean()
    assert kept == pytest.approx(share * 11 * 5 * 2 * 4 / 5)  # 4 tokens, gap


def test_targets_are_never_wanted(config, in_memory, model_of):
  logits = jnp.asarray([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
  wanted = jax.nn.one_hot(jnp.asarray([0, 0]), 4)
  keys = jax.random.split(jax.random.key(0), 2)
  target = lambda kind: robustness._target(logits, wanted, kind, keys)
  np.testing.assert_array_equal(target('runner_up'), [1, 3])
  np.testing.assert_array_equal(target('least_likely'), [3, 1])
  assert (target('random') != 0).all()
  config.attack.update(dict(target='runner_up', eps=(0.5,), steps=20))
  model, params = model_of(config)
  attack = attacked(config, in_memory(8), model, params)
  columns = attack.columns
  reached = columns['prediction_after'] == columns['target']
  assert (columns['target'] != columns['label']).all()
  assert reached.mean() > 0.5
  results = outcome.summarise(attack, config)
  (found,) = results['attacks']['pgd_linf'].values()
  assert found['target_reached'] == reached.mean()


def test_auxiliary_loss_can_be_attacked(config, in_memory, model_of):
  """Following the routers' loss alone raises it, not the class loss."""
  config.attack.update(
    dict(class_weight=0.0, auxiliary_weight=1.0, eps=(0.2,), save_images=True)
  )
  model, params = model_of(config)
  source = in_memory(8)
  columns = attacked(config, source, model, params).columns
  order = np.argsort(columns['index'])
  x_adv = jnp.asarray(columns['x_adv'][order].reshape(-1, 8, 8, 1))
  x = jnp.asarray(source.images / np.float32(255))
  after = robustness.auxiliary(model.apply(params, x_adv)[1], 8)
  before = robustness.auxiliary(model.apply(params, x)[1], 8)
  # Images that are broken may have stopped at a lower loss.
  broken = columns['prediction_after'][order] != columns['label'][order]
  assert (after > before)[~broken].all()


def test_auxiliary_loss_of_groups_is_shared(config, model_of, in_memory):
  model, params = model_of(config)
  x = jnp.asarray(in_memory(5).images / np.float32(255))
  _, aux = model.apply(params, x, experts='capacity')  # groups of 2, 2 and 1
  total = sum(r.routing.auxiliary_loss for r in aux.records.values())
  expected = np.repeat(total, 2)[:5]
  np.testing.assert_allclose(robustness.auxiliary(aux, 5), expected, rtol=1e-6)


def test_several_labels(config, in_memory, model_of, tmp_path):
  config.train.loss = 'sigmoid'
  model, params = model_of(config)
  source = in_memory(9, multi_label=True)
  attack = attacked(config, source, model, params)
  results = outcome.summarise(attack, config)
  logits, _ = model.apply(params, jnp.asarray(source.images / np.float32(255)))
  top = np.asarray(logits.argmax(-1))
  hot = np.stack([source[i]['label'] for i in range(9)])
  false = np.mean([hot[i, top[i]] == 0 for i in range(9)])
  assert results['clean_false_discovery_rate'] == pytest.approx(false)
  for found in results['attacks']['pgd_linf'].values():
    assert found['false_discovery_rate'] >= false - 1e-9


def test_written_results_come_from_the_records(
  config, in_memory, model_of, tmp_path
):
  model, params = model_of(config)
  attack = attacked(config, in_memory(9), model, params)
  about = {
    'attacked_images_per_second': attack.images_per_second,
    'split': 'x',
    'experts': 'dropless',
    'corrupt_images': [],
  }
  results = outcome.write(tmp_path, attack, config, about)
  assert json.loads((tmp_path / 'results.json').read_text()) == json.loads(
    json.dumps(results)
  )
  records = read_records(tmp_path / 'records.parquet')
  right = records['prediction_after'] == records['label']
  for eps in config.attack.eps:
    found = results['attacks']['pgd_linf'][f'{eps:.6g}']
    rows = records['eps'] == eps
    assert found['robust_accuracy'] == right[rows].mean()
    assert set(found['routing']) == {'encoderblock_0', 'encoderblock_1'}
  text = outcome.closing(results, tmp_path)
  assert 'clean' in text and 'routing' in text and str(tmp_path) in text


def test_clean_accuracy_over_padded_batches(config, in_memory, model_of):
  model, params = model_of(config)
  source = in_memory(13)
  batches = eval_batches(
    config.data,
    source,
    batch_size=8,
    sharding=batch_sharding(model.module.mesh),
  )
  found = accuracy.evaluate(accuracy.make(model, config), params, batches)
  logits, _ = model.apply(params, jnp.asarray(source.images / np.float32(255)))
  right = np.asarray(logits.argmax(-1)) == source.labels
  assert found['accuracy'] == pytest.approx(right.mean())
