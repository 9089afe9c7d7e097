import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.train import optimizer as optimizer_lib


def settings(**values):
  opt = config_lib.default().train.optimizer
  opt.update(values)
  return opt


PARAMS = {'layer': {'kernel': jnp.full((3, 2), 2.0), 'bias': jnp.ones(2)}}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('cosine', [0, 0.5, 1, 0.5, 0]),
    ('linear', [0, 0.5, 1, 0.5, 0]),
    ('constant', [0, 0.5, 1, 1, 1]),
    ('rsqrt', [0, 0.5, 1, 0.5**0.5, 3**-0.5]),
  ],
)
def test_schedules(name, expected):
  opt = settings(
    learning_rate=1.0, schedule=name, warmup_steps=10, rsqrt_timescale=20
  )
  rate = optimizer_lib.schedule(opt, 50)
  found = [float(rate(step)) for step in (0, 5, 10, 30, 50)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_adamw_against_its_formula():
  opt = settings(
    learning_rate=0.1, schedule='constant', weight_decay=0.5, clip_norm=0.0
  )
  optimizer = optimizer_lib.make(opt, 10)
  gradient = {'layer': {'kernel': jnp.full((3, 2), 4.0), 'bias': -jnp.ones(2)}}
  update, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
  # The first step of Adam is the sign; the decay is decoupled, and of
  # kernels alone.
  np.testing.assert_allclose(
    update['layer']['kernel'], -0.1 * (1 + 0.5 * 2), rtol=1e-5
  )
  np.testing.assert_allclose(update['layer']['bias'], 0.1, rtol=1e-5)


def test_sgd_with_momentum_and_clipping():
  opt = settings(
    name='sgd', learning_rate=1.0, schedule='constant', clip_norm=1.0
  )
  optimizer = optimizer_lib.make(opt, 10)
  gradient = jax.tree.map(lambda x: jnp.full_like(x, 100.0), PARAMS)
  state = optimizer.init(PARAMS)
  one, state = optimizer.update(gradient, state, PARAMS)
  two, _ = optimizer.update(gradient, state, PARAMS)
  np.testing.assert_allclose(one['layer']['bias'], -(8**-0.5), rtol=1e-5)
  np.testing.assert_allclose(two['layer']['bias'], -1.9 * 8**-0.5, rtol=1e-5)


def test_adafactor_keeps_one_row_and_one_column():
  opt = settings(name='adafactor', momentum=0.0)
  optimizer = optimizer_lib.make(opt, 10)
  params = {'kernel': jnp.ones((256, 128))}
  state = optimizer.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 + 128 + 10
  update, _ = optimizer.update(params, state, params)
  assert jnp.isfinite(update['kernel']).all()


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
def test_bfloat16_moments(name):
  optimizer = optimizer_lib.make(
    settings(name=name, moment_dtype='bfloat16'), 10
  )
  kinds = {leaf.dtype for leaf in jax.tree.leaves(optimizer.init(PARAMS))}
  assert jnp.dtype('bfloat16') in kinds


@pytest.mark.slow
@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
def test_every_optimizer_trains(config, run_of, name):
  config.train.optimizer.update(dict(name=name, weight_decay=0.01))
  config.train.steps = 20
  run = run_of(config, (2, 2, 1))
  batch, found = run.batch(0), []
  for _ in range(20):
    run.state, metrics = run.step(run.state, batch)
    found.append(float(metrics['loss']))
  assert found[-1] < found[0]
