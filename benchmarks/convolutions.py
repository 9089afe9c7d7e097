"""Convolutions on a CPU: where XLA compiles them well, and what replaces them.

  python benchmarks/convolutions.py [--rounds=3]

`attack`: APGD-CE of ten steps through `robustness/engine.py` on a small ResNet
at 32 pixels, 32 images of which all stand: steps that the host turns
(`robustness/apart.py`) against steps in a loop inside the program. `stem`: the
gradient by all weights of the stem of configs/cifar10_*, in a loop as resident
data has it: convolutions as products (`models/stem.py`) against XLA's own, for
the stem 'conv' and for patches, of these also 16 pixels wide on images of 224.
CPU-seconds, medians over rounds in turns.
"""

import argparse
import dataclasses
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import timing  # noqa: E402

from vmoe_robust import mesh as mesh_lib  # noqa: E402
from vmoe_robust import presets  # noqa: E402
from vmoe_robust.attacks import Budget, ensemble  # noqa: E402
from vmoe_robust.config import default  # noqa: E402
from vmoe_robust.models import stem, unbox  # noqa: E402
from vmoe_robust.robustness import sweep  # noqa: E402
from vmoe_robust.robustness.foreign import of_function  # noqa: E402
from vmoe_robust.robustness.measure import Arrays  # noqa: E402
from vmoe_robust.robustness.programs import Programs  # noqa: E402
from vmoe_robust.robustness.resume import Unfinished  # noqa: E402

SHAPE, IMAGES, STEPS = (32, 32, 3), 32, 10


class ResNet(nn.Module):
  """Three blocks, of 32, 64 and 128 channels."""

  @nn.compact
  def __call__(self, x):
    """Logits of ten classes."""
    x = nn.Conv(32, (3, 3))(x)
    for width, stride in ((32, 1), (64, 2), (128, 2)):
      y = nn.relu(nn.GroupNorm(8)(x))
      y = nn.Conv(width, (3, 3), stride)(y)
      y = nn.relu(nn.GroupNorm(8)(y))
      x = nn.Conv(width, (3, 3))(y) + nn.Conv(width, (1, 1), stride)(x)
    return nn.Dense(10)(x.mean((1, 2)))


def attacks():
  """Whole attacks, by where the loop turns."""
  model, rng = ResNet(), np.random.default_rng(0)
  images = rng.uniform(size=(IMAGES, *SHAPE)).astype(np.float32)
  weights = model.init(jax.random.key(0), images)
  labels = np.asarray(model.apply(weights, images)).argmax(-1)
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  target = of_function((model.apply, weights), None, SHAPE, mesh)
  chosen = ensemble(('apgd_ce',), 'linf', 10, Budget(STEPS))

  def attack(convolves):
    programs = Programs(
      dataclasses.replace(target, convolves=convolves),
      chosen,
      norm='linf',
      seed=0,
      batch_size=IMAGES,
    )
    rows = Arrays(images, labels.astype(np.int32))
    return lambda: sweep.run(
      programs, rows, (1e-4,), unfinished=Unfinished(None, {})
    )

  return {'host': attack(True), 'program': attack(False)}


def stems(kind, images=128, size=SHAPE[0], **fields):
  """Steps of gradient descent in a loop, by how convolutions are computed."""
  config = default().model
  config.update(presets.CIFAR10_VIT)
  config.update(dict(stem=kind) | fields)
  shape = (images, size, size, SHAPE[-1])
  images = jax.random.uniform(jax.random.key(0), shape)
  runs = {}
  for name, convolution in (('product', stem.product), ('xla', None)):
    module = stem.stem(config, jnp.dtype('float32'), convolution)
    weights = unbox(module.init(jax.random.key(1), images))
    loss = lambda w, module=module: jnp.square(module.apply(w, images)).mean()
    step = lambda _, w, loss=loss: jax.tree.map(
      lambda a, b: a - 0.01 * b, w, jax.grad(loss)(w)
    )
    loop = jax.jit(lambda w, step=step: jax.lax.fori_loop(0, 2, step, w))
    runs[name] = lambda loop=loop, w=weights: jax.block_until_ready(loop(w))
  return runs


def main():
  """Prints a line each."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=3)
  rounds = parser.parse_args().rounds
  for title, runs, new, old in (
    ('attack', attacks(), 'host', 'program'),
    ('stem conv', stems('conv'), 'product', 'xla'),
    ('stem patch', stems('patch'), 'product', 'xla'),
    ('patch of 16', stems('patch', 16, 224, patch=16), 'product', 'xla'),
  ):
    found = timing.interleave(runs, rounds)
    seconds = {name: float(np.median(each)) for name, each in found.items()}
    print(
      f'{title}: {new} {seconds[new]:.3f} CPU-s, {old} {seconds[old]:.3f}, '
      f'ratio {timing.ratio(found, new, old):.3f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
