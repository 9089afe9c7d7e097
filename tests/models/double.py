"""What `test_double.py` runs under JAX_ENABLE_X64."""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models import build, unbox

SHAPE = (8, 8, 3)


def model_of(name, mesh, router=None, **fields):
  config = config_lib.default().model
  config.update(dict(patch=4, hidden=16, layers=1, heads=2, mlp=24))
  config.update(dict(head='gap', num_classes=5, experts=4, moe_every=1))
  config.update(fields)
  config.router.update(dict(name=name, selected=2) | (router or {}))
  devices = jax.devices()[: int(np.prod(mesh))]
  return build(config, SHAPE, mesh_lib.create(mesh, devices))


def check(name, experts, mesh, router=None, **fields):
  model, rng = model_of(name, mesh, router, **fields), np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0))))
  double = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape), shapes)
  single = jax.tree.map(lambda a: a.astype(np.float32), double)
  images = rng.random((4, *SHAPE))
  direction = rng.normal(size=images.shape)

  def frozen(params, images, clean):
    keep = lambda block, tokens, _: (tokens, clean[block].routing)
    return model.apply(params, images, experts=experts, intervene=keep)[0].sum()

  clean = jax.jit(lambda *a: model.apply(*a, experts=experts))
  slope = jax.jit(jax.value_and_grad(frozen, 1))
  # In float64, where a difference tells the gradient from a wrong one.
  logits, aux = clean(double, images)
  assert logits.dtype == np.float64
  assert aux.records['encoderblock_0'].routing.gates.dtype == np.float64
  at = lambda step: slope(double, images + step * direction, aux.records)
  difference = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
  along = (at(0.0)[1] * direction).sum()
  np.testing.assert_allclose(along, difference, rtol=1e-7)
  # In float32, as without the setting.
  few, few_aux = clean(single, np.float32(images))
  assert few.dtype == np.float32
  np.testing.assert_allclose(few, logits, atol=1e-4)
  # Training, with noise.
  loss = lambda *a: model.apply(*a, experts=experts, key=KEY)[0].sum()
  gradient = jax.jit(jax.grad(loss))
  gradient = gradient(single, np.float32(images))
  assert {a.dtype for a in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}


KEY = jax.random.key(1)
check('top_k', 'dropless', (1, 1, 1))
check('top_k', 'capacity', (1, 2, 1))
check('expert_choice', 'capacity', (1, 1, 1))
modern = dict(gate='sigmoid', renormalize=True, unit='image')
modern |= dict(balance_rate=0.001, load_weight=0.0)
check('top_k', 'dropless', (1, 1, 1), modern)
check('hash', 'capacity', (1, 2, 1))
small = dict(stem='conv', head='seqpool', layer_scale=0.1)
check('soft', 'capacity', (1, 1, 1), **small)
