"""Numbers that no backend may change: logits, routing, gradients, attacks.

`compared` runs them here and, in a process of its own, on the CPU. A part of
benchmarks/accelerator.py.
"""

import os
import subprocess
import sys
import tempfile
from concurrent import futures
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust import robust_accuracy
from vmoe_robust.models import build, unbox
from vmoe_robust.models.routers import ROUTERS


def drawn(shapes, seed: int = 0):
  """Weights that are the same on every backend, and of a trained model's size.

  JAX's own draws differ between backends in their last bits.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(np.float32)
    name = jax.tree_util.keystr(path)
    if 'scale' in name:
      return 1 + 0.1 * x
    inputs = leaf.shape[-2] if len(leaf.shape) > 1 else 400
    return x / np.sqrt(inputs)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def small(router: str, dtype: str = 'float32'):
  """A V-MoE with two sparse blocks on 16 x 16 pixels, and its weights."""
  config = config_lib.default()
  config.data.image_size = 16
  config.model.update(
    patch=4, hidden=128, layers=4, heads=4, mlp=256, channels=3
  )
  config.model.update(
    num_classes=10, experts=8, moe_blocks=(1, 3), compute_dtype=dtype
  )
  config.model.router.update(
    name=router, selected=2, group_images=4, capacity_factor=1.5
  )
  if router == 'expert_choice':
    config.model.router.group_images = 1
  model = build(config.model, (16, 16, 3), mesh_lib.create((1, 1, 1)))
  shapes = unbox(jax.eval_shape(model.init, jax.random.key(0)))
  return model, jax.tree.map(jnp.asarray, drawn(shapes))


def numbers(long: bool) -> dict[str, np.ndarray]:
  """What is compared between backends, by name."""
  rng = np.random.default_rng(1)
  images = rng.random((32, 16, 16, 3), np.float32)
  labels = rng.integers(0, 10, 32).astype(np.int32)
  found = {}

  def value(params, x, model, experts):
    logits, aux = model.apply(params, x, experts=experts)
    chosen = {name: r.routing.experts for name, r in aux.records.items()}
    picked = jnp.take_along_axis(logits, labels[:, None], 1)
    return picked.mean() + 0.01 * aux.loss, (logits, chosen)

  routers = sorted(ROUTERS.keys() - {'oracle'})  # that one wants the class
  ready = {}
  for precision in ('highest', 'default'):
    for router in routers if precision == 'highest' else ['top_k']:
      model, params = small(router)
      for experts in ('dropless', 'capacity'):
        run = partial(value, model=model, experts=experts)
        with jax.default_matmul_precision(precision):
          run = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
          run = run.lower(params, images)
        ready[f'{precision}/{router}/{experts}'] = run, params
  with futures.ThreadPoolExecutor(4) as threads:  # they compile side by side
    compiled = threads.map(lambda pair: pair[0].compile(), ready.values())
    for name, run in zip(ready, compiled, strict=True):
      (_, (logits, chosen)), (d_params, d_images) = run(ready[name][1], images)
      flat = lambda tree: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(tree)]
      )
      found[f'{name}/logits'] = logits
      found[f'{name}/routing'] = flat(chosen)
      found[f'{name}/image gradient'] = d_images
      found[f'{name}/weight gradient'] = flat(d_params)
  found |= attacked(long)
  return {name: np.asarray(x) for name, x in found.items()}


def attacked(long: bool) -> dict[str, np.ndarray]:
  """Which images each attack leaves, of a network that separates them."""
  rng = np.random.default_rng(2)
  first = rng.normal(size=(192, 64)).astype(np.float32) / 14
  second = rng.normal(size=(64, 10)).astype(np.float32)

  def logits(weights, x):
    hidden = jnp.tanh((2 * x.reshape(len(x), -1) - 1) @ weights[0])
    return hidden @ weights[1]

  images = rng.random((128, 8, 8, 3), np.float32)
  weights = jnp.asarray(first), jnp.asarray(second)
  labels = np.asarray(logits(weights, images)).argmax(-1)
  found = {}
  every = ('pgd', 'apgd_t', 'apgd_ce', 'fab_t', 'square')
  asked = [('linf', 0.02, every[:2])]
  if long:
    asked = [('linf', 0.02, every), ('l2', 0.2, every), ('l1', 1.0, every[:-1])]
  for norm, eps, attacks in asked:
    for attack in attacks:
      result = robust_accuracy(
        (logits, weights),
        images,
        labels,
        attack=attack,
        norm=norm,
        eps=eps,
        iterations=20,
        queries=300,
        progress=False,
      )
      found[f'attack/{norm}/{attack}'] = result.robust
  return found


def compared(long: bool) -> dict:
  """The accelerator against the CPU; relative errors and shares."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'cpu.npz')
    other = subprocess.Popen(
      [sys.executable, __file__, path, str(int(long))],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    here = numbers(long)
    if other.wait():
      raise RuntimeError('the run on the CPU failed')
    there = dict(np.load(path))
  rows = {}
  for name, mine in here.items():
    theirs = there[name]
    if mine.dtype.kind == 'f':
      error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
      rows[name] = float(error)
    else:
      rows[name] = float((mine == theirs).mean())
  print(f'{"":<36}{"error":>12}')
  for name, error in rows.items():
    alike = here[name].dtype.kind != 'f'
    shown = f'{error:>11.1%} alike' if alike else f'{error:>12.1e}'
    if name.startswith('attack/'):
      shares = f' ({here[name].mean():.3f} and {there[name].mean():.3f} stand)'
      shown += shares
    print(f'{name:<46}{shown}')
  return rows


if __name__ == '__main__':
  np.savez(sys.argv[1], **numbers(bool(int(sys.argv[2]))))
