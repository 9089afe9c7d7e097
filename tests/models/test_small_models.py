"""Stems, pooling and layer scale against independent NumPy versions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.models import stem, unbox
from vmoe_robust.models.layers import LayerScale
from vmoe_robust.models.moe import Grouping
from vmoe_robust.models.stem import ConvStem


def drawn(shapes, seed=0):
  normal = np.random.default_rng(seed).normal
  return jax.tree.map(lambda a: normal(0, 0.4, a.shape), shapes)


def convolution(x, kernel, bias, stride):
  """3x3, a border of one zero, written out for each place."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = ((n - 2) // stride for n in x.shape[1:3])
  out = np.zeros((len(x), height, width, kernel.shape[3]))
  for i in range(height):
    for j in range(width):
      top, left = i * stride, j * stride
      seen = x[:, top : top + 3, left : left + 3]
      out[:, i, j] = np.einsum('bhwc,hwcd->bd', seen, kernel) + bias
  return out


def norm(x, scale, bias):
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  return centred / np.sqrt(variance + 1e-6) * scale + bias


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize('patch', [1, 2, 4, 8, 16])
def test_the_stem_makes_the_patches_grid(patch):
  module = ConvStem(patch, 16, jnp.dtype('float32'), stem.product)
  images = np.random.default_rng(1).normal(size=(2, 32, 16, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(images))
  params = drawn(unbox(shapes['params']))
  found = jax.jit(module.apply)({'params': params}, images)
  assert found.shape == (2, 32 // patch, 16 // patch, 16)
  strides, x = stem.strides(patch), images
  assert len(strides) >= 2 and np.prod(strides) == patch and max(strides) <= 2
  for i, stride in enumerate(strides):
    if i:
      affine = params[f'norm_{i - 1}']
      x = gelu(norm(x, affine['scale'], affine['bias']))
    conv = params[f'conv_{i}']
    x = convolution(x, conv['kernel'], conv['bias'], stride)
  np.testing.assert_allclose(found, x, atol=2e-5 * np.abs(x).max())


@pytest.mark.parametrize(
  'side, stride, border',
  [(3, 1, 1), (3, 2, 1), (4, 4, 0), (5, 5, 0), (3, 3, 1)],
)
def test_a_product_is_a_convolution_with_its_gradients(side, stride, border):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(2, 12, 8, 3)).astype(np.float32)
  kernel = rng.normal(size=(side, side, 3, 5)).astype(np.float32)

  def total(convolve, x, kernel):
    padding = [(border, border)] * 2
    out = convolve(
      x,
      kernel,
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return jnp.sin(out).sum(), out

  for convolve in (stem.product, jax.lax.conv_general_dilated):
    run = jax.value_and_grad(total, argnums=(1, 2), has_aux=True)
    found = jax.jit(functools.partial(run, convolve))(x, kernel)
    if convolve is stem.product:
      expected = found
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, expected
  )


def test_a_product_is_as_short_for_large_patches():
  """A slice a pixel made 224 pixels in patches of 16 fourteen times slower."""

  def operations(side):
    total = lambda x, kernel: stem.product(
      x, kernel, (side, side), [(0, 0)] * 2
    )
    slope = jax.grad(lambda *given: total(*given).sum(), argnums=(0, 1))
    x, kernel = jnp.ones((1, 32, 32, 3)), jnp.ones((side, side, 3, 2))
    return len(jax.make_jaxpr(slope)(x, kernel).eqns)

  assert operations(16) == operations(2)


@pytest.mark.parametrize('kind', ['patch', 'conv'])
def test_a_cpu_meets_no_convolution_in_a_loop(vmoe, weights_of, kind):
  model = vmoe(stem=kind)
  params = weights_of(model)
  total = lambda params, x: model.apply(params, x)[0].sum()
  jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))
  assert 'conv_general' not in str(jaxpr(params, jnp.ones((2, 8, 8, 3))))


def test_every_pixel_reaches_a_token():
  module = ConvStem(16, 16, jnp.dtype('float32'), stem.product)
  images = jnp.ones((1, 32, 32, 1))
  params = unbox(jax.jit(module.init)(jax.random.key(0), images)['params'])
  images = jax.random.uniform(jax.random.key(1), (1, 32, 32, 1))
  total = lambda images: jnp.square(module.apply({'params': params}, images))
  slope = jax.jit(jax.grad(lambda images: total(images).sum()))(images)
  assert np.abs(slope).min() > 0


@pytest.mark.slow
def test_seqpool_is_a_weighted_mean(vmoe, weights_of):
  gap = vmoe(experts=0, moe_every=0)
  params = weights_of(gap)
  model = vmoe(experts=0, moe_every=0, head='seqpool')
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  # Scores of zero are the mean; one token that wins is that token.
  zero = params | {'seqpool': {'kernel': jnp.zeros((16, 1))}}
  run = jax.jit(lambda params: model.apply(params, images)[0])
  expected = jax.jit(gap.apply)(params, images)[0]
  np.testing.assert_allclose(run(zero), expected, atol=2e-6)
  kernel = np.random.default_rng(2).normal(size=(16, 1)).astype(np.float32)
  x = encoded(gap, params, images)
  scores = x @ kernel
  weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  assert weights.std() > 0.05
  head = params['head']
  by_hand = (weights * x).sum(1) @ head['kernel'] + head['bias']
  found = run(params | {'seqpool': {'kernel': jnp.asarray(kernel)}})
  np.testing.assert_allclose(found, by_hand, atol=1e-5)


def encoded(model, params, images):
  """Tokens after the encoder, without the head."""
  _, state = model.module.apply(
    {'params': params},
    images,
    grouping(images),
    capture_intermediates=lambda module, _: module.name == 'encoder_norm',
    mutable=['intermediates'],
  )
  found = state['intermediates']['Encoder']['encoder_norm']['__call__'][0]
  return np.asarray(found, np.float64)


def grouping(images):
  return Grouping(
    mask=jnp.ones(len(images), bool),
    index=jnp.arange(len(images)),
    images=1,
    dropless=True,
    train=False,
  )


def test_layer_scale_multiplies_each_branch(vmoe, weights_of):
  plain = vmoe(experts=0, moe_every=0)
  params = weights_of(plain)
  scaled = vmoe(experts=0, moe_every=0, layer_scale=0.1)
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  rng = np.random.default_rng(1)
  first, second = rng.normal(size=(2, 16)).astype(np.float32)
  with_scales = jax.tree.map(lambda a: a, params)
  block = with_scales['Encoder']['encoderblock_0']
  block['LayerScale_0'] = {'scale': jnp.asarray(first)}
  block['LayerScale_1'] = {'scale': jnp.asarray(second)}
  # The same as scaled last layers of both branches.
  by_hand = jax.tree.map(lambda a: a, params)
  block = by_hand['Encoder']['encoderblock_0']
  out, last = block['SelfAttention']['out'], block['Mlp']['Dense_1']
  for layer, factor in ((out, first), (last, second)):
    layer['kernel'] = layer['kernel'] * factor
    layer['bias'] = layer['bias'] * factor
  found = jax.jit(scaled.apply)(with_scales, images)[0]
  expected = jax.jit(plain.apply)(by_hand, images)[0]
  np.testing.assert_allclose(found, expected, atol=1e-5)
  start = LayerScale(0.1).init(jax.random.key(0), jnp.ones((2, 3)))
  np.testing.assert_array_equal(
    unbox(start['params'])['scale'], np.full(3, 0.1, np.float32)
  )


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(stem='early'), "config.model.stem='early'"),
    (dict(stem='conv', patch=6), 'patch=6 is no power of two'),
    (dict(stem='conv', patch=8, hidden=6, heads=2), 'use 8$'),
    (dict(layer_scale=-0.1), 'layer_scale=-0.1 is no factor'),
    (dict(layer_scale=float('inf')), 'layer_scale=inf is no factor'),
    (dict(head='cls'), "config.model.head='cls'"),
  ],
)
def test_what_makes_no_model_is_refused(fields, words):
  config = config_lib.default()
  config.data.image_size = 48
  config.model.update(fields)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


def test_what_makes_a_model_is_not():
  config = config_lib.default()
  config.data.image_size = 48
  config.model.update(dict(stem='conv', head='seqpool', layer_scale=1e-4))
  for patch in (1, 2, 4, 8, 16):
    config.model.patch = patch
    config_lib.validate(config, 1)


@pytest.mark.parametrize(
  'shape', all_slow_but([(4, 2, 1)], [(2, 2, 2), (4, 2, 1)]), ids=str
)
def test_no_mesh_changes_them(vmoe, weights_of, shape):
  fields = dict(stem='conv', head='seqpool', layer_scale=0.1)
  fields |= dict(expert_mlp=12, shared_experts=1)
  alone, spread = vmoe(**fields), vmoe(shape, **fields)
  params = weights_of(alone)
  images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
  expected, found = (
    jax.jit(model.apply)(params, images)[0] for model in (alone, spread)
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)
