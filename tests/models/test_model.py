"""The whole model: what one image owes to another, to the mesh, to chance."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.conftest import small_config
from tests.slow import all_slow_but
from vmoe_robust.config import UserError
from vmoe_robust.mesh import create
from vmoe_robust.models import build, unbox

ROUTERS = ('top_k', 'expert_choice', 'soft')
# Few slots, so that capacity drops tokens.
TIGHT = {'group_images': 4, 'capacity_factor': 0.6}


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


@pytest.fixture(scope='module')
def images():
  return draw(0, 8, 8, 8, 3)


def logits_and_own_gradient(model, experts):
  """All logits, and the gradient of image 0's by all images."""

  @jax.jit
  def both(params, images):
    towards = jnp.arange(1.0, 6.0)
    apply = functools.partial(model.apply, params, experts=experts)
    logits, pull = jax.vjp(lambda images: apply(images)[0], images)
    return logits, pull(jnp.zeros_like(logits).at[0].set(towards))[0]

  return both


@pytest.mark.parametrize(
  'name', all_slow_but(['top_k', 'hash'], (*ROUTERS, 'hash', 'image'))
)
@pytest.mark.parametrize(
  'experts', all_slow_but(['capacity'], ['dropless', 'capacity'])
)
def test_swap(vmoe, weights_of, images, name, experts):
  router = dict(TIGHT, name=name, batch_priority=True)
  if name == 'image':
    router.update(name='top_k', unit='image', gate='sigmoid')
  model = vmoe(router=router, layers=2, head='token')
  params = weights_of(model)
  run = logits_and_own_gradient(model, experts)
  logits, gradient = run(params, images)
  # Others that are unlike each other, and others that crowd image 0's experts.
  swaps = (draw(1, 7, 8, 8, 3), jnp.broadcast_to(images[0], (7, 8, 8, 3)))
  changes = []
  for others in swaps:
    found = run(params, jnp.concatenate([images[:1], others]))
    change = lambda a, b: np.abs(a - b).max() / np.abs(b).max()
    changes.append(
      (change(found[0][0], logits[0]), change(found[1][0], gradient[0]))
    )
    if experts == 'dropless':
      assert not found[1][1:].any()
  # By position, who finds room does not depend on what is in the others.
  if experts == 'dropless' or name in ('soft', 'hash'):
    assert np.max(changes) < 1e-6, changes
  else:
    assert np.max(changes, axis=0).min() > 1e-3, changes


@pytest.mark.slow
def test_any_batch_size(vmoe, weights_of, images):
  model = vmoe(router=dict(TIGHT, z_weight=0.1))
  params = weights_of(model)
  apply = jax.jit(functools.partial(model.apply, experts='capacity'))
  for batch in (1, 3, 5, 7):
    logits, aux = apply(params, images[:batch])
    whole = -(-batch // 4) * 4
    mask = jnp.arange(whole) < batch
    by_hand = apply(params, images[:whole], mask=mask)
    np.testing.assert_allclose(logits, by_hand[0][:batch], atol=1e-6)
    np.testing.assert_allclose(aux.loss, by_hand[1].loss, rtol=1e-6)
    assert aux.loss > 0
    (record,), (padded,) = aux.records.values(), by_hand[1].records.values()
    np.testing.assert_array_equal(record.placement.kept, padded.placement.kept)
    assert record.routing.gates.shape == (whole // 4, 4 * 4, 1)
    assert batch == 1 or not record.placement.kept[0, : 3 * 4].all()


@pytest.mark.slow
def test_padding_first_or_last_is_the_same(vmoe, weights_of, images):
  model = vmoe((1, 2, 1), router=TIGHT)
  params = weights_of(model)
  apply = jax.jit(functools.partial(model.apply, experts='capacity'))
  mask = jnp.asarray([True, True, True, False] + [False] * 4)
  last, aux = apply(params, images, mask=mask)
  moved = jnp.concatenate([images[4:5], images[:3], images[4:]])
  first, moved_aux = apply(params, moved, mask=jnp.roll(mask, 1))
  np.testing.assert_allclose(first[1:4], last[:3], atol=1e-6)
  # A group of padding alone adds nothing to the loss.
  np.testing.assert_allclose(moved_aux.loss, aux.loss, rtol=1e-6)
  alone, aux_alone = apply(params, images[:4], mask=mask[:4])
  np.testing.assert_allclose(alone[:3], last[:3], atol=1e-6)
  np.testing.assert_allclose(aux_alone.loss, aux.loss, rtol=1e-6)


def pulled(model, experts):
  """Value and gradients of a loss with everything random in it."""

  def loss(params, images, key, index):
    logits, aux = model.apply(
      params, images, experts=experts, key=key, index=index
    )
    return jnp.sin(logits).sum() + aux.loss, logits

  both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

  def run(params, images, key, index=None):
    (_, logits), gradients = both(params, images, key, index)
    return logits, gradients

  return run


# Stochastic depth begins with the second block.
RANDOM = dict(dropout=0.2, stochastic_depth=0.4, layers=2, moe_every=2)


@pytest.mark.slow
@pytest.mark.parametrize(
  'experts, shapes',
  [('capacity', [(2, 4, 1), (2, 2, 2)]), ('dropless', [(2, 2, 2)])],
)
def test_draws_follow_the_image(
  vmoe, weights_of, images, close, experts, shapes
):
  # Four groups, so that on eight devices half of them hold padding.
  router = dict(group_images=2, capacity_factor=0.7, selected=2)

  def function(shape):
    model = vmoe(shape, router, **RANDOM)
    return jax.jit(functools.partial(model.apply, experts=experts))

  run, key = function((1, 1, 1)), jax.random.key(5)
  params = weights_of(vmoe(router=router, **RANDOM))
  index = jnp.arange(8)  # the default, too
  expected, aux = run(params, images, key=key, index=index)
  for shape in shapes:
    logits, other = function(shape)(params, images, key=key)
    close((logits, other.loss), (expected, aux.loss), 1e-5)
    for name, record in aux.records.items():
      np.testing.assert_array_equal(
        other.records[name].placement.kept, record.placement.kept
      )
  # Groups in another order, with the index of their images.
  order = jnp.asarray([4, 5, 2, 3, 6, 7, 0, 1])
  moved, _ = run(params, images[order], key=key, index=order)
  close(moved, expected[order])
  unmoved, _ = run(params, images[order], key=key, index=index)
  assert np.abs(unmoved - moved).max() > 0.1
  other, _ = run(params, images, key=jax.random.key(6), index=index)
  assert np.abs(other - expected).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('name', ROUTERS[1:])
def test_other_routers_on_any_mesh(vmoe, weights_of, images, close, name):
  make = functools.partial(vmoe, router={'name': name, 'group_images': 2})
  model, key = make(), jax.random.key(5)
  params = weights_of(model)
  expected = pulled(model, 'capacity')(params, images, key)
  found = pulled(make((2, 2, 2)), 'capacity')(params, images, key)
  close(found, expected, 1e-5)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda x: x.reshape(-1, 16, 4, 3), r'takes one or more of \[8, 8, 3\]'),
    (lambda x: x[:0], r'images are \[0, 8, 8, 3\]'),
    (lambda x: (255 * x).astype(np.uint8), 'images are uint8'),
  ],
)
def test_images_of_another_kind_are_refused(
  vmoe, weights_of, images, change, words
):
  model = vmoe()
  # Without the checks of types that tests switch on.
  apply = functools.partial(inspect.unwrap(type(model).apply), model)
  with pytest.raises(UserError, match=words):
    apply(weights_of(model), change(images))
  with pytest.raises(UserError, match="experts='Dropless' .*dropless"):
    apply(weights_of(model), images, experts='Dropless')


def test_without_a_key_nothing_is_random(vmoe, weights_of, images):
  plain = vmoe(router=TIGHT, layers=2, moe_every=2)
  params = weights_of(plain)
  expected, _ = jax.jit(plain.apply)(params, images)
  random = vmoe(router=dict(TIGHT, noise_std=9.0), **RANDOM)
  found, _ = jax.jit(random.apply)(params, images, index=jnp.arange(8) + 80)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_several_experts_a_device(vmoe, weights_of, images, close):
  make = functools.partial(vmoe, router={'selected': 2}, experts=6)
  model = make()
  params = weights_of(model)
  expected = pulled(model, 'dropless')(params, images, None)
  found = pulled(make((2, 2, 2)), 'dropless')(params, images, None)
  close(found, expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'how, experts, name, decisions',
  [
    ('blocks', 'dropless', 'top_k', (' argmax[', ' scatter[')),
    ('blocks', 'capacity', 'top_k', (' argmax[', ' scatter[')),
    ('dots', 'capacity', 'top_k', (' argmax[', ' scatter[')),
    ('blocks', 'capacity', 'expert_choice', (' sort[',)),
    ('dots', 'capacity', 'expert_choice', (' sort[',)),
  ],
)
def test_remat_changes_nothing(
  vmoe, weights_of, images, close, how, experts, name, decisions
):
  # With everything random, once.
  key = jax.random.key(1) if experts == 'capacity' else None
  model, remat = (
    vmoe(router={'name': name}, dropout=0.2, remat=remat) for remat in ('', how)
  )
  params = weights_of(model)
  expected = pulled(model, experts)(params, images, key)
  close(pulled(remat, experts)(params, images, key), expected)

  def count(model, operation):
    loss = lambda params: model.apply(params, images, experts=experts)[0].sum()
    return str(jax.make_jaxpr(jax.grad(loss))(params)).count(operation)

  for decision in decisions:
    # Routers do not decide again.
    assert count(remat, decision) == count(model, decision) > 0
  assert count(remat, ' exp ') > count(model, ' exp ')  # softmax does


@pytest.mark.slow
@pytest.mark.parametrize('sparse', [0, 4])
def test_an_attack_holds_less_than_training(vmoe, weights_of, sparse):
  """What only the weights' gradient needs is not kept for the image's."""
  model = vmoe(layers=4, hidden=64, mlp=256, experts=sparse)
  params = weights_of(model)
  images = jax.ShapeDtypeStruct((64, *model.image_shape), jnp.float32)
  loss = lambda *x: model.apply(*x, experts='dropless')[0].sum()

  def held(by):
    program = jax.jit(jax.grad(loss, by)).lower(params, images).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert held(by=1) < 0.9 * held(by=0)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, experts',
  [
    ('top_k', 'dropless'),
    ('top_k', 'capacity'),
    ('expert_choice', 'capacity'),
    ('soft', 'capacity'),
  ],
)
def test_bfloat16(vmoe, weights_of, images, name, experts):
  # All of the experts, so that rounding does not change who is chosen.
  router = {'name': name, 'selected': 4, 'capacity_factor': 1.0}
  full = vmoe(router=router)
  half = vmoe(router=router, compute_dtype='bfloat16')
  params = weights_of(full)
  expected, _ = jax.jit(full.apply)(params, images)
  dtypes = jax.tree.map(lambda a: a.dtype, params)

  def loss(params):
    logits, aux = half.apply(params, images, experts=experts)
    return logits.sum(), (logits, aux)

  gradient, (logits, aux) = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert jax.tree.map(lambda a: a.dtype, gradient) == dtypes
  (record,) = aux.records.values()
  for value in (logits, record.routing.logits, record.routing.gates):
    assert value.dtype == jnp.float32
  error = np.abs(logits - expected).max() / np.abs(expected).max()
  assert 0 < error < 0.03


def test_a_model_is_that_of_its_own_settings():
  """Settings that are changed after `build` are of the next model alone."""
  config, mesh = small_config().model, create((1, 1, 1), jax.devices()[:1])
  config.layers = 1
  images = draw(0, 2, 8, 8, 1)
  two = build(config, (8, 8, 1), mesh)
  params = unbox(jax.jit(two.init)(jax.random.key(0)))
  selected = lambda model: {
    record.routing.experts.shape[-1]
    for record in model.apply(params, images)[1].records.values()
  }
  assert selected(two) == {2}
  config.router.selected = 1
  assert selected(build(config, (8, 8, 1), mesh)) == {1}
  assert selected(two) == {2}


@pytest.mark.parametrize(
  ('field', 'values'),
  [
    ('router.capacity_factor', (0.25, 1.0, 4.0)),
    ('router.selected', (1, 2, 4)),
    ('compute_dtype', ('float32', 'bfloat16')),
  ],
)
def test_a_changed_model_is_the_one_that_is_built_so(
  field, values, config_of, mesh_of, vmoe, weights_of
):
  """In one program too; the model that it was made of stays what it was."""
  router = dict(group_images=8, gate='sigmoid')
  model, fresh = vmoe(router=router), vmoe(router=router)
  params, images = weights_of(model), draw(0, 8, 8, 8, 3)
  logits = lambda one: one.apply(params, images, experts='capacity')[0]

  def built(value):
    config = config_of(router)
    config.update_from_flattened_dict({field: value})
    return build(config, (8, 8, 3), mesh_of())

  variants = [model.changed({field: value}) for value in values]
  models = [*variants, model]
  found = jax.jit(lambda: [logits(one) for one in models])()
  expected = [jax.jit(logits, static_argnums=0)(built(v)) for v in values]
  expected.append(jax.jit(logits, static_argnums=0)(fresh))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert len({one.tobytes() for one in map(np.asarray, found[:-1])}) == len(
    values
  )
  assert hash(model.module) == hash(fresh.module)
  assert model.module == fresh.module
  assert len({one.module for one in variants}) == len(values)
  # What was changed before is no part of what is changed next.
  later = model.changed({'router.noise_std': 0.5})
  assert later.module == fresh.changed({'router.noise_std': 0.5}).module
