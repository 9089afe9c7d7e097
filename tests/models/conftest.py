"""Small models and single layers on meshes of fake devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models import build, unbox
from vmoe_robust.models.moe import Grouping, Moe

DIM, HIDDEN, EXPERTS = 8, 12, 4


@pytest.fixture(scope='session')
def config_of():
  """Fields of `config.model`: by default one block, sparse.

  Its head is 'gap': that of the class token would see that token's expert
  alone.
  """

  def make(router=None, **fields):
    config = config_lib.default().model
    config.update(dict(patch=4, hidden=16, layers=1, heads=2, mlp=24))
    config.update(dict(head='gap', num_classes=5))
    config.update(dict(experts=EXPERTS, moe_every=1))
    config.update(fields)
    config.router.update(router or {})
    return config

  return make


@pytest.fixture(scope='session')
def mesh_of():
  """A mesh of this shape over the first of the devices."""

  @functools.cache
  def make(shape=(1, 1, 1)):
    return mesh_lib.create(shape, jax.devices()[: math.prod(shape)])

  return make


@pytest.fixture(scope='session')
def vmoe(config_of, mesh_of):
  """A small model, by default of 8x8 images."""

  def make(shape=(1, 1, 1), router=None, remat='', image=(8, 8, 3), **fields):
    config = config_of(router, **fields)
    return build(config, image, mesh_of(shape), remat)

  return make


@pytest.fixture(scope='session')
def weights_of():
  """Weights none of which is zero, as initial ones of the head are."""

  def make(model, seed=0):
    shapes = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0))))
    normal = np.random.default_rng(seed).normal
    draw = lambda leaf: jnp.asarray(normal(0, 0.3, leaf.shape), leaf.dtype)
    return jax.tree.map(draw, shapes)

  return make


@pytest.fixture(scope='session')
def layer_of(config_of, mesh_of):
  """A sparse layer as a function (params, x, mask, index, key)."""

  def make(
    router,
    images,
    shape=(1, 1, 1),
    dropless=False,
    noisy=False,
    plain=False,
    intervene=None,
  ):
    config = config_of(router, hidden=DIM, mlp=HIDDEN)
    moe = Moe(config, jnp.dtype('float32'), mesh_of(shape))

    def layer(params, x, mask=None, index=None, key=None, labels=None):
      batch = len(x)
      grouping = Grouping(
        mask=jnp.ones(batch, bool) if mask is None else mask,
        index=jnp.arange(batch) if index is None else index,
        images=images,
        dropless=dropless,
        train=noisy,
        plain=plain,
        intervene=intervene,
        labels=labels,
      )
      rngs = {'noise': key} if noisy else {}
      return moe.apply({'params': params}, x, grouping, rngs=rngs)

    return layer

  return make


@pytest.fixture(scope='session')
def layer_inputs():
  """Weights of a sparse layer, images of tokens, and a cotangent."""

  def make(images, tokens, router):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    dense = lambda d, f: {
      'kernel': draw(EXPERTS, d, f),
      'bias': draw(EXPERTS, f),
    }
    experts = {'Dense_0': dense(DIM, HIDDEN), 'Dense_1': dense(HIDDEN, DIM)}
    params = {
      'Router': jax.tree.map(
        lambda shape: draw(*shape),
        router,
        is_leaf=lambda node: isinstance(node, tuple),
      ),
      'Mlp': experts,
    }
    return params, draw(images, tokens, DIM), draw(images, tokens, DIM)

  return make


@pytest.fixture(scope='session')
def every_expert():
  """All experts' outputs for all tokens: (batch, tokens, experts, dim)."""

  def apply(params, x):
    first, second = params['Mlp']['Dense_0'], params['Mlp']['Dense_1']
    hidden = jnp.einsum('btd,edf->btef', x, first['kernel'])
    hidden = jax.nn.gelu(hidden + first['bias'])
    out = jnp.einsum('btef,efd->bted', hidden, second['kernel'])
    return out + second['bias']

  return apply


@pytest.fixture(scope='session')
def close():
  """Trees are equal, relative to each leaf's largest value.

  A leaf far smaller than the others is the rounding of something that is
  zero, such as the gradient of the bias of attention's keys.
  """

  def check(tree, expected, tolerance=3e-6):
    found = jax.tree.leaves_with_path(tree)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(expected)]
    largest = max(np.abs(leaf).max() for leaf in leaves)
    for (path, leaf), other in zip(found, leaves, strict=True):
      scale = max(np.abs(other).max(), largest / 100)
      np.testing.assert_allclose(
        np.asarray(leaf),
        other,
        rtol=0,
        atol=tolerance * scale,
        err_msg=jax.tree_util.keystr(path),
      )

  return check
