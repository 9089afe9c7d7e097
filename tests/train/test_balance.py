"""Loads of experts: who is told, what is logged, and biases that follow."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.models import balance
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.train import routers
from vmoe_robust.train.load import Loads
from vmoe_robust.train.log import Log

BLOCK = 'encoderblock_1'
RATE = 0.25


def balanced(config, **router):
  config.model.router.update(dict(balance_rate=RATE, load_weight=0.0))
  config.model.router.update(router)
  return config


def router_of(params):
  return params['Encoder'][BLOCK]['Moe']['Router']


def tree(bias):
  moe = {'Router': {'bias': jnp.asarray(bias)}, 'Mlp': 1}
  return {'Encoder': {BLOCK: {'Moe': moe, 'a': 2}, 'b': 3}, 'head': 4}


def test_the_bias_follows_the_sign_of_the_load(config):
  before = tree([1.0, 2.0, 3.0])
  metrics = {f'load/{BLOCK}': jnp.asarray([0.0, 1.0, 2.0]), 'loss': 5.0}
  assert balance.moved(before, metrics, config.model) is before
  after = balance.moved(before, metrics, balanced(config).model)
  bias = router_of(after).pop('bias')
  np.testing.assert_array_equal(bias, [1 + RATE, 2, 3 - RATE])
  np.testing.assert_array_equal(router_of(before).pop('bias'), [1, 2, 3])
  assert after == before  # all else
  # 41 choices of 41 are even, whatever their rounding.
  even = {f'load/{BLOCK}': jnp.asarray([0.99999994, 1.0000001, 40 / 41])}
  bias = router_of(balance.moved(tree([1.0, 2.0, 3.0]), even, config.model))
  np.testing.assert_array_equal(bias['bias'], [1, 2, 3 + RATE])


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_step_moves_it_by_the_loads_that_it_reports(config, run_of, shape):
  balanced(config, gate='sigmoid')
  config.train.ema = 0.5
  # Neither the decay nor the moments may touch it.
  opt = dict(name='adamw', learning_rate=0.1, weight_decay=0.5)
  config.train.optimizer.update(opt)
  run = run_of(config, shape)
  bias = mean = np.zeros(4)
  for i in range(3):
    run.state, metrics = run.step(run.state, run.batch(i))
    load = np.asarray(metrics[f'load/{BLOCK}'])
    np.testing.assert_allclose(load.sum(), 4, rtol=1e-5)
    # 15 images of 5 tokens that choose two of four experts.
    count = load * 15 * 5 * 2 / 4
    np.testing.assert_allclose(count, np.round(count), atol=1e-3)
    bias = bias + RATE * np.sign(1 - load)
    mean = 0.5 * mean + 0.5 * bias
    np.testing.assert_array_equal(router_of(run.state.params)['bias'], bias)
    np.testing.assert_allclose(
      router_of(run.state.evaluated())['bias'], mean, atol=1e-6
    )
  assert np.any(bias)
  saved = run.state.trees()
  assert 'bias' in router_of(saved['params']) and 'bias' in router_of(
    saved['ema']
  )


@pytest.mark.slow
def test_loads_are_of_the_whole_batch(config, run_of):
  balanced(config)
  whole = run_of(config, (1, 1, 1))
  config.train.accumulate = 2
  parts = run_of(config, (2, 1, 1))
  for i in range(2):
    whole.state, expected = whole.step(whole.state, whole.batch(i))
    parts.state, found = parts.step(parts.state, parts.batch(i))
    np.testing.assert_allclose(
      found[f'load/{BLOCK}'], expected[f'load/{BLOCK}'], rtol=1e-5
    )
    bias = [router_of(run.state.params)['bias'] for run in (whole, parts)]
    np.testing.assert_array_equal(*bias)
    assert i or np.any(bias[0])  # the second step takes back the first


@pytest.mark.slow
def test_a_batch_that_is_no_multiple_of_groups(config, run_of):
  config.model.router.group_images = 3  # 16 images are 6 groups, of 18
  run = run_of(config, (1, 1, 1))
  metrics = run.step(run.state, run.batch(0))[1]
  np.testing.assert_allclose(metrics[f'load/{BLOCK}'].sum(), 4, rtol=1e-5)
  config.model.router.capacity_factor = 1e-3  # four slots an expert
  run = run_of(config, (1, 1, 1))
  metrics = run.step(run.state, run.batch(0))[1]
  # 15 images of 10 choices; 6 groups of at most 16 slots.
  assert metrics[f'dropped/{BLOCK}'] >= 1 - 6 * 16 / 150 - 1e-6


@pytest.mark.slow
def test_a_frozen_router_stays_as_it_was_drawn(config, run_of):
  config.model.router.frozen = True
  opt = dict(name='adamw', learning_rate=0.1, weight_decay=0.5)
  config.train.optimizer.update(opt)
  run = run_of(config, (1, 1, 1))
  before = np.asarray(router_of(run.state.params)['frozen'])
  run.losses(2)
  np.testing.assert_array_equal(router_of(run.state.params)['frozen'], before)


@pytest.mark.slow
@pytest.mark.parametrize(
  'router',
  [
    dict(name='hash'),
    dict(name='oracle'),
    dict(gate='sigmoid', renormalize=True, unit='image'),
  ],
  ids=lambda router: router.get('name', 'image'),
)
def test_others_train_on_any_mesh(config, run_of, router):
  config.model.router.update(router)
  config.model.update(dict(expert_mlp=8, shared_experts=1))
  config.data.mixup = 0.5 * ('name' not in router)
  alone = run_of(config, (1, 1, 1)).losses(3)
  spread = run_of(config, (2, 2, 2)).losses(3)
  np.testing.assert_allclose(spread, alone, atol=1e-5)


def test_biases_make_a_crowd_even():
  """Tokens that all prefer expert 0 end up on all four."""
  rng = np.random.default_rng(0)
  gates = rng.random((256, 4)) + [1, 0, 0, 0]
  model = balanced(config_lib.default(), balance_rate=0.02).model
  model.experts = 4
  params = tree(np.zeros(4))
  load = lambda bias: np.bincount((gates + bias).argmax(1), minlength=4) / 64
  assert load(np.zeros(4))[0] > 3.9
  for _ in range(60):
    found = load(np.asarray(router_of(params)['bias']))
    metrics = {f'load/{BLOCK}': jnp.asarray(found)}
    params = balance.moved(params, metrics, model)
  assert np.abs(found - 1).max() < 0.4


def step(*load):
  return {'loss': np.float32(1), f'load/{BLOCK}': np.asarray(load)}


def test_who_starves_is_told_once():
  loads = Loads()
  assert loads.take(step(0.0, 2.0)) == {'loss': 1.0}
  loads.take(step(0.4, 1.6))
  values, text = loads.report()
  assert values == {f'load/{BLOCK}/0': 0.2, f'load/{BLOCK}/1': 1.8}
  assert not text  # in one step alone
  loads.take(step(0.05, 1.95))
  starved = f'experts with less than a tenth of an even share: 0 of {BLOCK}'
  assert loads.report()[1] == starved
  loads.take(step(0.0, 2.0))
  assert not loads.report()[1]  # as before
  loads.take(step(1.0, 1.0))
  assert loads.report()[1].endswith('or more again')
  assert loads.report() == ({}, '')


def test_loads_outlive_a_stop_wherever_it_is():
  steps = [(0.0, 2.0), (0.05, 1.95), (1.0, 1.0), *4 * [(0.0, 2.0)]]

  def told(stops):
    loads, found = Loads(), []
    for number, load in enumerate(steps):
      loads.take(step(*load))
      if number % 2:
        found.append(loads.report())
      if number in stops:
        loads = Loads(json.loads(json.dumps(loads.state())))
    return [*found, loads.report()]

  whole = told(())
  assert len({text for _, text in whole}) == 3
  for stop in range(len(steps)):
    assert told((stop,)) == whole
  assert told(range(len(steps))) == whole


def test_the_log_has_every_load(tmp_path, capsys):
  config = config_lib.default()
  config.train.update(dict(steps=4, log_every=2))
  writer = MetricWriter(tmp_path)
  log = Log(config, lambda: None, writer, None, Loads())
  norms = dict.fromkeys(('gradient_norm', 'update_norm', 'accuracy'), 0.5)
  for number, load in enumerate([(0, 2), (0, 2), (0, 2), (0.1, 1.9)], 1):
    log.add(number, norms | step(*load))
  log.drain()
  writer.close()
  text = (tmp_path / 'metrics.jsonl').read_text()
  lines = map(json.loads, text.splitlines())
  found = {line['step']: line[f'load/{BLOCK}/0'] for line in lines}
  assert found == {1: 0.0, 2: 0.0, 4: 0.05}
  said = capsys.readouterr().out
  assert said.startswith('step 2: experts with less than a tenth')
  assert said.count('\n') == 1


@pytest.mark.slow
def test_loads_of_routers_without_choices(config, run_of):
  for fields in (dict(name='soft'), dict(name='expert_choice')):
    config.model.router.update(fields)
    run = run_of(config, (1, 1, 1))
    metrics = jax.eval_shape(run.step, run.state, run.batch(0))[1]
    assert not [name for name in metrics if name.startswith('load')]
  config.model.update(dict(experts=0, moe_every=0))
  config.model.router.name = 'top_k'
  run = run_of(config, (1, 1, 1))
  metrics = jax.eval_shape(run.step, run.state, run.batch(0))[1]
  assert not [name for name in metrics if name.startswith('load')]


@pytest.mark.slow
def test_no_step_is_told_the_class_but_the_oracles(config, run_of):
  """Labels of the same images change routes of the oracle alone."""
  routes = {}
  for name in ('oracle', 'top_k'):
    config.model.router.name = name
    run = run_of(config, (1, 1, 1))
    apply = jax.jit(functools.partial(run.model.apply, run.state.params))
    images = run.batch(0)['image'] / 255
    for label in (0, 1):
      labels = jnp.full(16, label)
      (record,) = apply(images, labels=labels)[1].records.values()
      routes[name, label] = np.asarray(record.routing.experts)
  assert np.array_equal(routes['top_k', 0], routes['top_k', 1])
  assert not np.array_equal(routes['oracle', 0], routes['oracle', 1])


def test_the_distance_of_a_router_is_of_what_it_learns():
  """Biases that follow the load move without a gradient."""

  def weights(kernel, bias):
    router = {'kernel': jnp.array(kernel), 'bias': jnp.array(bias)}
    return {'Encoder': {BLOCK: {'Moe': {'Router': router}}}}

  start = routers.of(weights([1.0, 2.0], [0.0]))
  gradient = weights([0.0, 0.0], [0.0])
  for kernel, distance in (([1.0, 2.0], 0), ([4.0, 6.0], 5)):
    found = routers.metrics(weights(kernel, [5.0]), gradient, start)
    assert found[f'router_distance/{BLOCK}'] == distance
