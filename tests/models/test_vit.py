"""The transformer's parts: heads, positions, sparse blocks, initial weights."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import model as checks
from vmoe_robust.models import build, unbox, vit

D, F, HEADS, CLASSES, PATCHES = 16, 24, 2, 5, 4


def shapes_of(model):
  shapes = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0))))
  return {k: v.shape for k, v in flatten_dict(shapes, sep='/').items()}


def layers(prefix, **shapes):
  names = {}
  for name, (kernel, bias) in shapes.items():
    names[f'{prefix}{name}/kernel'] = kernel
    names[f'{prefix}{name}/bias'] = bias
  return names


def attention(prefix):
  split = (D, HEADS, D // HEADS), (HEADS, D // HEADS)
  out = (HEADS, D // HEADS, D), (D,)
  return layers(prefix, query=split, key=split, value=split, out=out)


def mlp(prefix, *experts):
  return layers(
    prefix,
    Dense_0=((*experts, D, F), (*experts, F)),
    Dense_1=((*experts, F, D), (*experts, D)),
  )


def norm(name):
  return {f'{name}/scale': (D,), f'{name}/bias': (D,)}


def block(i, sparse):
  start = f'Encoder/encoderblock_{i}/'
  found = norm(f'{start}LayerNorm_0') | norm(f'{start}LayerNorm_1')
  found |= attention(f'{start}SelfAttention/')
  if not sparse:
    return found | mlp(f'{start}Mlp/')
  router = {f'{start}Moe/Router/dense/kernel': (D, 4)}
  return found | router | mlp(f'{start}Moe/Mlp/', 4)


def documented(head, positions, pre_logits):
  tokens = PATCHES + (head == 'token')
  found = layers('', embedding=((4, 4, 3, D), (D,)))
  found |= norm('Encoder/encoder_norm') | block(0, False) | block(1, True)
  if positions == 'learned':
    found['Encoder/posembed_input/pos_embedding'] = (1, tokens, D)
  if head == 'token':
    found['cls'] = (1, 1, D)
  if head == 'map':
    found['map_probe'] = (1, 1, D)
    found |= attention('map_attention/') | norm('map_norm') | mlp('map_mlp/')
  if head == 'seqpool':
    found['seqpool/kernel'] = (D, 1)
  if pre_logits:
    found |= layers('', pre_logits=((D, pre_logits), (pre_logits,)))
  width = pre_logits or D
  return found | layers('', head=((width, CLASSES), (CLASSES,)))


@pytest.mark.parametrize('pre_logits', [0, 7])
@pytest.mark.parametrize('positions', checks.POSITIONS)
@pytest.mark.parametrize('head', checks.HEADS)
def test_weights_have_the_documented_names(vmoe, head, positions, pre_logits):
  fields = dict(head=head, positions=positions, pre_logits=pre_logits)
  model = vmoe(layers=2, moe_every=2, **fields)
  assert shapes_of(model) == documented(**fields)


def test_the_convolutions_and_scales_have_names_too(vmoe):
  model = vmoe(stem='conv', layer_scale=0.1, layers=2, moe_every=2)
  found = documented('gap', 'learned', 0)
  found = {n: s for n, s in found.items() if not n.startswith('embedding/')}
  half = D // 2
  first, second = ((3, 3, 3, half), (half,)), ((3, 3, half, D), (D,))
  found |= layers('stem/', conv_0=first, conv_1=second)
  found |= {f'stem/norm_0/{name}': (half,) for name in ('scale', 'bias')}
  for i, j in itertools.product(range(2), repeat=2):
    found[f'Encoder/encoderblock_{i}/LayerScale_{j}/scale'] = (D,)
  assert shapes_of(model) == found


@pytest.mark.parametrize(
  'head, positions, pre_logits',
  [('token', 'sincos', 7), ('gap', 'learned', 0), ('map', 'sincos', 0)],
)
def test_heads_see_the_image_and_its_order(
  vmoe, weights_of, head, positions, pre_logits
):
  model = vmoe(head=head, positions=positions, pre_logits=pre_logits)
  params = weights_of(model)
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  # The second image is the first one, mirrored; then moved by a patch.
  images = images.at[1].set(jnp.roll(images[0], 4, axis=1))
  logits, _ = jax.jit(model.apply)(params, images)
  assert logits.shape == (2, CLASSES) and np.isfinite(logits).all()
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_pixels_are_normalised_inside(config_of, mesh_of, weights_of):
  mean, std = (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)

  def model(mean, std):
    config = config_of(experts=0)
    with config.ignore_type():
      config.update(dict(mean=mean, std=std))
    return build(config, (8, 8, 3), mesh_of())

  plain = model(0.0, 1.0)
  params = weights_of(plain)
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  by_hand = (images - jnp.asarray(mean)) / jnp.asarray(std)
  expected, _ = jax.jit(plain.apply)(params, by_hand)
  found, _ = jax.jit(model(mean, std).apply)(params, images)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sincos_positions_differ_and_are_those_of_the_grid():
  table = vit.sincos((3, 5), 16)
  assert table.shape == (15, 16) and np.abs(table).max() <= 1
  distances = np.linalg.norm(table[:, None] - table, axis=-1)
  assert distances[~np.eye(15, dtype=bool)].min() > 0.1
  grid = table.reshape(3, 5, 16)
  # Half of the channels know the column alone, half the row.
  np.testing.assert_array_equal(grid[0, :, :8], grid[2, :, :8])
  np.testing.assert_array_equal(grid[:, 0, 8:], grid[:, 4, 8:])
  np.testing.assert_allclose(grid[0, :, 0], np.sin(np.arange(5)), atol=1e-6)


@pytest.mark.parametrize(
  'fields, sparse',
  [
    (dict(moe_every=1), [0, 1, 2, 3, 4, 5]),
    (dict(moe_every=2), [1, 3, 5]),
    (dict(moe_every=3), [2, 5]),
    (dict(moe_every=6), [5]),
    (dict(moe_last=1), [5]),
    (dict(moe_last=2), [3, 5]),
    (dict(moe_blocks=(4, 0)), [0, 4]),
    (dict(moe_every=2, experts=0), []),
  ],
)
def test_sparse_blocks(vmoe, fields, sparse):
  model = vmoe(layers=6, **{'moe_every': 0, **fields})
  blocks = {name.split('/')[1] for name in shapes_of(model) if 'Moe' in name}
  assert blocks == {f'encoderblock_{i}' for i in sparse}
  config_lib.validate(whole_config(model), 1)


def whole_config(model):
  config = config_lib.default()
  config.model.update(model.module.config.to_dict())
  return config


def test_experts_begin_unlike_each_other(vmoe):
  params = jax.jit(lambda key: unbox(vmoe(hidden=32, mlp=64).init(key)))(
    jax.random.key(0)
  )
  experts = params['Encoder']['encoderblock_0']['Moe']['Mlp']
  for name in ('Dense_0', 'Dense_1'):
    for leaf in jax.tree.leaves(experts[name]):
      for a, b in itertools.combinations(np.asarray(leaf), 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5
    # Each as a dense layer's: Xavier's bound is of one expert's fans.
    bound = np.sqrt(6 / (32 + 64))
    largest = np.abs(experts[name]['kernel']).max(axis=(1, 2))
    assert (largest <= bound).all() and (largest > 0.95 * bound).all()
    assert 0 < np.abs(experts[name]['bias']).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(2, 2, 2), (4, 2, 1)], ids=str)
def test_sharded_weights_are_the_unsharded_ones(vmoe, mesh_of, shape):
  key = jax.random.key(3)
  alone = jax.jit(lambda key: unbox(vmoe().init(key)))(key)
  model, mesh = vmoe(shape), mesh_of(shape)
  boxed = jax.eval_shape(model.init, key)
  table = mesh_lib.rules(fsdp=True)
  shardings = mesh_lib.tree_shardings(boxed, mesh, table)
  init = jax.jit(lambda key: unbox(model.init(key)), out_shardings=shardings)
  params = init(key)
  jax.tree.map(np.testing.assert_array_equal, params, alone)
  data, expert, model_axis = shape
  sparse = params['Encoder']['encoderblock_0']['Moe']
  for leaf, pieces in (
    (sparse['Mlp']['Dense_0']['kernel'], (expert, data, model_axis)),
    (sparse['Mlp']['Dense_0']['bias'], (expert, model_axis)),
    (sparse['Mlp']['Dense_1']['kernel'], (expert, model_axis, data)),
    (sparse['Mlp']['Dense_1']['bias'], (expert, data)),
    (sparse['Router']['dense']['kernel'], (data, 1)),
    (params['embedding']['kernel'], (1, 1, 1, data)),
    (params['head']['kernel'], (data, 1)),
  ):
    held = leaf.sharding.shard_shape(leaf.shape)
    assert held == tuple(
      size // n for size, n in zip(leaf.shape, pieces, strict=True)
    )


@pytest.mark.parametrize('head', ['map', 'seqpool'])
def test_every_axis_name_has_a_rule(vmoe, head):
  more = dict(stem='conv', layer_scale=0.1)
  model = vmoe(layers=2, moe_every=2, head=head, **more)
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  names = {
    name
    for leaf in jax.tree.leaves(boxed, is_leaf=is_box)
    if is_box(leaf)
    for name in leaf.names
  }
  assert names - {None} <= set(mesh_lib.rules())
