import jax
import jax.numpy as jnp
import numpy as np
import pytest

SHAPES = [(1, 8, 1), (2, 4, 1), (2, 2, 2), (8, 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize('experts', ['capacity', 'dropless'])
def test_sharded_equals_unsharded(config, run_of, experts):
  config.train.experts = experts
  config.data.mixup = 0.5
  config.model.experts = 8
  if experts == 'capacity':
    config.train.optimizer.update(dict(name='adamw', learning_rate=1e-3))
    config.seed = 1  # with which no gradient is so near zero, see `small`
  alone = run_of(config, (1, 1, 1)).losses(4)
  for shape in SHAPES:
    config.mesh.fsdp = shape[0] == 2
    spread = run_of(config, shape).losses(4)
    np.testing.assert_allclose(spread, alone, atol=1e-5, err_msg=str(shape))


@pytest.mark.slow
@pytest.mark.parametrize('router', ['expert_choice', 'soft'])
def test_sharded_equals_unsharded_for_every_router(config, run_of, router):
  config.model.router.name = router
  alone = run_of(config, (1, 1, 1)).losses(3)
  spread = run_of(config, (2, 2, 2)).losses(3)
  np.testing.assert_allclose(spread, alone, atol=1e-5)


@pytest.mark.slow
def test_a_microbatch_without_an_image_has_no_part(config, run_of):
  """Losses of routers are means over groups, of which it has none."""
  config.model.router.noise_std = config.model.dropout = 0.0
  found = {}
  for parts in (1, 2, 4):
    config.train.accumulate = parts
    run = run_of(config, (1, 1, 1))
    batch = run.batch(0)
    mask = np.arange(len(batch['mask'])) >= 9  # one of a group of two
    state = jax.tree.map(jnp.copy, run.state)
    _, found[parts] = run.step(state, dict(batch, mask=mask))
  for parts in (2, 4):
    for name in found[1]:
      np.testing.assert_allclose(
        found[parts][name], found[1][name], rtol=2e-5, err_msg=name
      )


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 1)], ids=str)
def test_accumulation_matches_the_whole_batch(config, run_of, shape):
  config.data.mixup = 0.5
  whole = run_of(config, shape)
  config.train.accumulate = 2
  parts = run_of(config, shape)
  for i in range(3):
    whole.state, expected = whole.step(whole.state, whole.batch(i))
    parts.state, found = parts.step(parts.state, parts.batch(i))
    for name in expected:
      np.testing.assert_allclose(
        found[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name
      )


@pytest.mark.slow
def test_masked_images_do_not_count(config, run_of):
  run = run_of(config, (1, 1, 1))
  batch = run.batch(0)
  other = dict(batch, label=batch['label'].at[3].add(1) % 3)
  state = jax.tree.map(jnp.copy, run.state)
  _, expected = run.step(run.state, batch)
  _, found = run.step(state, other)
  assert found['cross_entropy'] == expected['cross_entropy']


@pytest.mark.slow
def test_average_follows_the_weights(config, run_of):
  config.train.ema = 0.9
  run = run_of(config, (1, 1, 1))
  before = jax.device_get(run.state.ema)
  run.losses(1)
  expected = jax.tree.map(
    lambda old, new: 0.9 * old + 0.1 * np.asarray(new), before, run.state.params
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    run.state.evaluated(),
    expected,
  )


@pytest.mark.slow
def test_sigmoid_loss_of_several_labels(config, run_of):
  config.train.loss = 'sigmoid'
  run = run_of(config, (1, 1, 1))
  batch = run.batch(0)
  batch['label'] = jnp.asarray(
    np.random.default_rng(0).integers(0, 2, (16, 3)), jnp.float32
  )
  first = last = None
  for _ in range(5):
    run.state, metrics = run.step(run.state, batch)
    first, last = first or float(metrics['loss']), float(metrics['loss'])
  assert last < first


@pytest.mark.slow
@pytest.mark.parametrize('split', ['fsdp', 'zero1'])
def test_what_is_split_over_the_data_axis(config, run_of, split):
  alone = run_of(config, (1, 1, 1)).losses(3)
  config.mesh[split] = True
  run = run_of(config, (2, 2, 2))
  moe = run.state.params['Encoder']['encoderblock_1']['Moe']
  kernel = moe['Mlp']['Dense_0']['kernel']
  part = lambda x: x.addressable_shards[0].data.size / x.size
  moments = [x for x in jax.tree.leaves(run.state.opt_state) if x.ndim == 3]
  moments = [part(x) for x in moments if x.shape == kernel.shape]
  assert part(kernel) == (1 / 8 if split == 'fsdp' else 1 / 4)
  assert moments and set(moments) == {1 / 8}
  np.testing.assert_allclose(run.losses(3), alone, atol=1e-5)
  # They stay where they are.
  after = [x for x in jax.tree.leaves(run.state.opt_state) if x.ndim == 3]
  assert [part(x) for x in after if x.shape == kernel.shape] == moments
