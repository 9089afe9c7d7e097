"""`config.attack` on our models: PGD, the paper's attack, ensembles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust.config import UserError
from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import accuracy, job, target
from vmoe_robust.evaluate.attack import Attacker, asked
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import losses
from vmoe_robust.report.closing import closing
from vmoe_robust.report.records import read_records
from vmoe_robust.report.results import read_results
from vmoe_robust.robustness import images, programs
from vmoe_robust.robustness.findings import findings, render
from vmoe_robust.robustness.measure import Measure
from vmoe_robust.robustness.resume import Unfinished

_attackers = {}  # of each configuration and mesh: compiled once


@pytest.fixture(scope='module', autouse=True)
def forgotten():
  """A process can keep only so many compiled attacks: those of this file."""
  yield
  _attackers.clear()


def attacked(config, source, model, params, archive=None, folder=None, **how):
  unfinished = Unfinished(folder, identity(config, 3, None, source))
  kind = (str(config), model.module.mesh.devices.shape)
  if kind not in _attackers:
    _attackers[kind] = Attacker(model, config.copy_and_resolve_references())
  return _attackers[kind](params, source, unfinished, archive, **how)


def archived(folder, columns, eps):
  rows = columns['eps'] == eps
  process, row = columns['x_adv_process'][rows], columns['x_adv_row'][rows]
  return images.read(folder / f'{eps:.6g}', process, row, (8, 8, 1))


@pytest.mark.slow
def test_every_example_once(config, in_memory, model_of):
  model, params = model_of(config)
  found = attacked(config, in_memory(19), model, params)
  columns = found.columns
  assert found.images_per_second > 0 and not found.corrupt
  for eps in config.attack.eps:
    rows = columns['eps'] == eps
    assert sorted(columns['index'][rows]) == list(range(19))
  assert columns['in_ball'].all() and columns['in_range'].all()


@pytest.mark.slow
def test_one_program_serves_a_whole_sweep(config, in_memory, model_of):
  model, params = model_of(config)
  attacker, source = Attacker(model, config), in_memory(16)
  for weights in (params, jax.tree.map(lambda x: 2 * x, params)):
    attacker(weights, source, Unfinished(None, {}))
  (jitted,) = attacker._programs._programs.values()
  assert jitted['advance']._cache_size() == 1


@pytest.mark.parametrize(
  'broken', all_slow_but(['in_range'], ['in_ball', 'in_range'])
)
def test_what_leaves_its_bounds_is_not_reported(
  config, in_memory, model_of, broken
):
  model, params = model_of(config)
  whole = target.of_config(model, params, config)
  measure = Measure(whole, norm='linf', seed=0, batch_size=8)
  source = in_memory(8)
  x = source.images / np.float32(255)
  batch = {
    'image': jnp.asarray(source.images),
    'label': jnp.asarray(source.labels, jnp.int32),
    'mask': jnp.ones(8, bool),
  }
  wrong = {
    'in_ball': (np.clip(x + 0.2, 0, 1), x * np.nan),
    'in_range': (np.where(x == x.min(), np.float32(-0.05), x), x * np.nan),
  }
  for x_adv in wrong[broken]:
    out = measure.score(params, batch, jnp.asarray(x_adv), 0.1)
    assert not out[broken].all()
    with pytest.raises(RuntimeError, match=r'by pgd is not in_\w+ at linf'):
      programs._require_bounds(out, np.arange(8), 0.1, 'linf', 'pgd')


@pytest.mark.slow
@pytest.mark.parametrize(
  'attack', [dict(), dict(name='apgd_ce+square', steps=5, queries=10)], ids=str
)
def test_records_are_those_of_the_model(
  config, in_memory, model_of, tmp_path, attack
):
  """Judged again from the kept x_adv, by calling the model directly."""
  config.attack.update(attack)
  model, params = model_of(config)
  source = in_memory(13)
  found = attacked(config, source, model, params, tmp_path)
  columns = found.columns
  apply = jax.jit(model.apply)
  for eps in config.attack.eps:
    rows = columns['eps'] == eps
    assert columns['index'][rows].tolist() == list(range(13))
    x_adv = jnp.asarray(archived(tmp_path, columns, eps))
    logits, _ = apply(params, x_adv)
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
    right = columns['prediction_after'][rows] == columns['label'][rows]
    clean = columns['prediction_before'][rows] == columns['label'][rows]
    assert (columns['fallen_in'][rows][clean & ~right] >= 0).all()
    assert not right[~clean].any()  # no image comes out easier
    robust_after = list(found.falls[eps].robust_after.values())
    assert robust_after[-1] == right.mean()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize('kind', ['runner_up', 'least_likely', 'random'])
def test_targets_are_never_wanted(config, model_of, kind):
  model, params = model_of(config)
  whole = target.of_config(model, params, config)
  measure = Measure(whole, norm='linf', seed=0, batch_size=8, ranks=4, aim=kind)
  logits = jnp.asarray([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
  index, several = jnp.arange(2), jnp.asarray([[1.0, 0, 1, 0], [1.0, 1, 0, 0]])
  one = np.asarray(measure._ranked(logits, jnp.asarray([0, 0]), index))
  assert (one[:, 0] != 0).all() and (one[:, 3] == 0).all()
  both = np.asarray(measure._ranked(logits, several, index))
  assert {both[0, 0], both[0, 1]} == {1, 3}
  assert {both[1, 0], both[1, 1]} == {2, 3}
  if kind != 'random':
    expected = {'runner_up': [1, 3], 'least_likely': [3, 1]}[kind]
    assert one[:, 0].tolist() == expected


@pytest.mark.slow
def test_a_target_is_reached(config, in_memory, model_of):
  config.attack.update(dict(target='runner_up', eps=(0.5,), steps=20))
  model, params = model_of(config)
  attack = attacked(config, in_memory(8), model, params)
  columns = attack.columns
  reached = columns['prediction_after'] == columns['target']
  assert (columns['target'] != columns['label']).all()
  assert reached.mean() > 0.5
  (row,) = findings(attack, asked(config)).rows
  assert row['target_reached']['value'] == reached.mean()


@pytest.mark.slow
def test_auxiliary_loss_can_be_attacked(config, in_memory, model_of, tmp_path):
  """Following the routers' loss alone raises it, not the class loss."""
  config.attack.update(dict(class_weight=0.0, auxiliary_weight=1.0, eps=(0.2,)))
  model, params = model_of(config)
  source = in_memory(8)
  columns = attacked(config, source, model, params, tmp_path).columns
  x_adv = jnp.asarray(archived(tmp_path, columns, 0.2))
  x = jnp.asarray(source.images / np.float32(255))
  apply = jax.jit(model.apply)
  after = target.auxiliary(apply(params, x_adv)[1], 8)
  before = target.auxiliary(apply(params, x)[1], 8)
  # Images that are broken may have stopped at a lower loss.
  broken = columns['prediction_after'] != columns['label']
  assert (after > before)[~broken].all()


def test_auxiliary_loss_of_groups_is_shared(config, model_of, in_memory):
  model, params = model_of(config)
  x = jnp.asarray(in_memory(5).images / np.float32(255))
  apply = jax.jit(functools.partial(model.apply, experts='capacity'))
  _, aux = apply(params, x)  # groups of 2, 2 and 1
  total = sum(r.routing.auxiliary_loss for r in aux.records.values())
  expected = np.repeat(total, 2)[:5]
  np.testing.assert_allclose(target.auxiliary(aux, 5), expected, rtol=1e-6)


@pytest.mark.slow
def test_several_labels(config, in_memory, model_of, tmp_path):
  config.train.loss = 'sigmoid'
  model, params = model_of(config)
  source = in_memory(9, multi_label=True)
  attack = attacked(config, source, model, params)
  found = findings(attack, asked(config))
  x = jnp.asarray(source.images / np.float32(255))
  logits, _ = jax.jit(model.apply)(params, x)
  top = np.asarray(logits.argmax(-1))
  hot = np.stack([source[i]['label'] for i in range(9)])
  false = np.mean([hot[i, top[i]] == 0 for i in range(9)])
  clean = found.summary['clean_false_discovery_rate']['value']
  assert clean == pytest.approx(false)
  for row in found.rows:
    assert row['false_discovery_rate']['value'] >= false - 1e-9


@pytest.mark.slow
def test_written_results_come_from_the_records(
  config, in_memory, model_of, opened, tmp_path
):
  model, params = model_of(config)
  source = in_memory(9)
  here = opened(config, source, model, params, tmp_path)
  found = attacked(config, source, model, params)
  job.write(here, findings(found, asked(config), source.class_names))
  results = read_results(tmp_path)
  records = read_records(tmp_path / 'records.parquet')
  right = records['prediction_after'] == records['label']
  for row in results['rows']:
    rows = records['eps'] == row['eps']
    assert row['robust_accuracy']['value'] == right[rows].mean()
    assert row['per_attack']['pgd']['robust_after'] == row['robust_accuracy']
    assert set(row['routing']) == {'encoderblock_0', 'encoderblock_1'}
  text = closing(results, tmp_path, render)
  assert 'clean' in text and 'routing' in text and str(tmp_path) in text


@pytest.mark.slow
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
  x = jnp.asarray(source.images / np.float32(255))
  logits, _ = jax.jit(model.apply)(params, x)
  right = np.asarray(logits.argmax(-1)) == source.labels
  assert found['accuracy'] == pytest.approx(right.mean())


@pytest.mark.slow
def test_half_precision_is_judged_in_full(
  config, in_memory, model_of, tmp_path
):
  config.attack.update(dict(name='apgd_ce', eps=(0.1,)))
  config.attack.compute_dtype = 'bfloat16'
  model, params = model_of(config)
  columns = attacked(config, in_memory(8), model, params, tmp_path).columns
  x_adv = jnp.asarray(archived(tmp_path, columns, 0.1))
  logits, _ = jax.jit(model.apply)(params, x_adv)
  np.testing.assert_array_equal(columns['prediction_after'], logits.argmax(-1))


def test_several_labels_are_refused(config, model_of):
  config.train.loss, config.attack.name = 'sigmoid', 'autoattack'
  model, _ = model_of(config)
  with pytest.raises(UserError, match="config.train.loss='sigmoid'"):
    Attacker(model, config)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['pgd', 'paper', 'apgd_ce+square'])
def test_images_that_share_capacity_stay_together(
  config, in_memory, model_of, tmp_path, name
):
  """Batches of capacity mode, judged again as whole batches."""
  config.attack.update(dict(name=name, experts='capacity', eps=(0.2,)))
  config.attack.queries = 10
  config.model.router.update(dict(group_images=4, capacity_factor=0.5))
  model, params = model_of(config)
  found = attacked(config, in_memory(19), model, params, tmp_path)
  columns = found.columns
  assert '4 images at a time share capacity' in ' '.join(found.warnings)
  assert columns['index'].tolist() == list(range(19))
  x_adv = archived(tmp_path, columns, 0.2)
  apply = jax.jit(functools.partial(model.apply, experts='capacity'))
  for first in range(0, 19, 8):
    part = x_adv[first : first + 8]
    padded = np.zeros((8, 8, 8, 1), np.float32)
    padded[: len(part)] = part
    mask = np.arange(8) < len(part)
    logits, _ = apply(params, jnp.asarray(padded), mask=jnp.asarray(mask))
    np.testing.assert_array_equal(
      columns['prediction_after'][first : first + 8],
      np.asarray(logits.argmax(-1))[: len(part)],
    )
  right = columns['prediction_after'] == columns['label']
  assert list(found.falls[0.2].robust_after.values())[-1] == right.mean()


class Stop(BaseException):
  pass


@pytest.mark.slow
@pytest.mark.parametrize('experts', ['dropless', 'capacity'])
def test_an_attack_goes_on_after_what_ended(
  config, in_memory, model_of, tmp_path, experts, monkeypatch
):
  from vmoe_robust.robustness import sweep

  monkeypatch.setattr(sweep, '_SAVE_EVERY', 0.0)
  config.attack.update(dict(experts=experts, restarts=2))
  model, params = model_of(config)
  source, turns = in_memory(24), []

  def stop(*_):
    turns.append(0)
    if len(turns) == 33:
      raise Stop

  expected = attacked(config, source, model, params)
  with pytest.raises(Stop):
    attacked(config, source, model, params, folder=tmp_path, on_turn=stop)
  found = attacked(config, source, model, params, folder=tmp_path)
  for name, column in expected.columns.items():
    np.testing.assert_array_equal(found.columns[name], column, name)
  for eps, loads in expected.loads.items():
    for name, load in loads.items():
      np.testing.assert_array_equal(found.loads[eps][name], load)
  config.attack.steps = 5
  with pytest.raises(UserError, match='config.attack.steps is 5 here and was'):
    attacked(config, source, model, params, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_what_is_not_finite_is_wrong(config, in_memory, model_of, loss):
  """NaN is never class 0, before an attack or after it."""
  config.train.loss, config.attack.eps = loss, (0.1,)
  model, params = model_of(config)
  source = in_memory(8, multi_label=loss == 'sigmoid')
  for bad in (np.nan, np.inf):
    params['head']['bias'] = jnp.asarray([0.0, 0, bad, 0])
    found = attacked(config, source, model, params)
    results = findings(found, asked(config))
    assert results.summary['clean_accuracy']['value'] == 0
    assert results.rows[0]['robust_accuracy']['value'] == 0
    assert found.falls[0.1].robust_after == {'pgd': 0.0}
    assert (found.columns['prediction_after'] == -1).all()
    assert 'not finite' in ' '.join(found.warnings)
    place = batch_sharding(model.module.mesh)
    with_batches = eval_batches(
      config.data, source, batch_size=8, sharding=place
    )
    clean = accuracy.evaluate(
      accuracy.make(model, config), params, with_batches
    )
    assert clean['accuracy'] == 0


@pytest.mark.slow
def test_confident_models_are_attacked_alike(config, in_memory, model_of):
  """With logits x 1,000 the cross-entropy and its gradient round to 0."""
  config.attack.update(dict(eps=(0.1,), steps=8))
  model, params = model_of(config)
  source = in_memory(8)
  # Labels that the model gives, so that it is sure of them.
  x = jnp.asarray(source.images / np.float32(255))
  source.labels = np.asarray(jax.jit(model.apply)(params, x)[0].argmax(-1))
  plain = attacked(config, source, model, params)
  params['head'] = jax.tree.map(lambda w: 1000 * w, params['head'])
  sure = attacked(config, source, model, params)
  assert not sure.warnings
  for name in ('prediction_before', 'prediction_after'):
    np.testing.assert_array_equal(sure.columns[name], plain.columns[name])
  assert (plain.columns['prediction_after'] != source.labels).any()
