"""How the devices of a mesh talk to each other, read from compiled programs.

  python benchmarks/collectives.py

Eight CPU devices that are not there, as (data, expert) = 1 x 8 and 2 x 4. Of
one MoE layer: forward, forward and backward, and the gradient by its input
alone, with capacity and dropless. Of a whole small V-MoE: the training step
and a step of PGD. A round of the dropless layer is counted once, however many
the data need. Bytes are those of a device. A table for people, then one line
of JSON.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial

# Before JAX is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from ml_collections import FrozenConfigDict  # noqa: E402

from vmoe_robust import config as config_lib  # noqa: E402
from vmoe_robust import mesh as mesh_lib  # noqa: E402
from vmoe_robust.cost.collectives import Collective  # noqa: E402
from vmoe_robust.cost.program import costs  # noqa: E402
from vmoe_robust.models.moe import Grouping, Moe  # noqa: E402
from vmoe_robust.rehearse.programs import Programs  # noqa: E402
from vmoe_robust.report.table import table  # noqa: E402

EXPERT_MODES = ('capacity', 'dropless')
MESHES = {'1x8': (1, 8, 1), '2x4': (2, 4, 1)}
BATCH, TOKENS = 32, 16
STEPS = 7  # of the attack: no other loop has as many turns


def experiment() -> config_lib.ConfigDict:
  """A small V-MoE with two sparse blocks, of whose size nothing depends."""
  config = config_lib.default()
  config.data.update(image_size=8)
  config.model.update(
    dict(patch=2, hidden=64, layers=2, heads=4, mlp=128, head='gap')
  )
  config.model.update(dict(num_classes=10, channels=1, experts=8, moe_every=1))
  config.model.router.update(selected=2, group_images=2)
  config.train.batch_size = BATCH
  # One gradient in a loop is all that is looked at.
  config.attack.update(steps=STEPS, random_start=False)
  return config


def layer(mesh: Mesh, experts: str, of: str) -> tuple[Collective, ...]:
  """Of one MoE layer: `of` is 'forward', 'both' or 'input'."""
  model = experiment().model
  moe = Moe(FrozenConfigDict(model), jnp.dtype('float32'), mesh)
  dropless = experts == 'dropless'
  grouping = Grouping(
    mask=jnp.ones(BATCH, bool),
    index=jnp.arange(BATCH),
    images=1 if dropless else model.router.group_images,
    dropless=dropless,
    train=False,
  )
  x = jax.ShapeDtypeStruct(
    (BATCH, TOKENS, model.hidden),
    jnp.float32,
    sharding=mesh_lib.batch_sharding(mesh),
  )
  boxed = jax.eval_shape(
    lambda: moe.init(jax.random.key(0), jnp.zeros(x.shape), grouping)
  )
  places = mesh_lib.tree_shardings(boxed, mesh, mesh_lib.rules())
  params = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    nn.unbox(boxed),
    places,
  )
  run = lambda params, x: moe.apply(params, x, grouping)[0]
  loss = lambda params, x, dy: (run(params, x) * dy).sum()
  if of == 'forward':
    program, arguments = run, (params, x)
    out = x.sharding
  else:
    wanted = (0, 1) if of == 'both' else 1
    program, arguments = jax.grad(loss, wanted), (params, x, x)
    out = (places, x.sharding) if of == 'both' else x.sharding
  program = jax.jit(program, out_shardings=out)
  return costs(program.lower(*arguments).compile(), mesh).collectives


def train_step(mesh: Mesh, experts: str) -> tuple[Collective, ...]:
  """Of the whole training step."""
  config = experiment()
  config.train.experts = experts
  compiled = Programs(config, mesh).compile('train')
  return costs(compiled, mesh).collectives


def attack_step(mesh: Mesh, experts: str) -> tuple[Collective, ...]:
  """Of one step of PGD; what comes before and after the loop is left out."""
  config = experiment()
  config.attack.experts = experts
  compiled = Programs(config, mesh).compile('pgd')
  found = costs(compiled, mesh).collectives
  return tuple(
    dataclasses.replace(c, count=c.count // STEPS)
    for c in found
    if c.count % STEPS == 0
  )


def scalar(found: Collective) -> bool:
  """Whether it carries no more than a few numbers, such as a metric."""
  return found.bytes <= 256


def summary(found: tuple[Collective, ...]) -> dict[str, dict[str, int]]:
  """Count and bytes by kind; scalars, which cost only latency, apart."""
  out = {}
  for one in found:
    name = f'{one.kind}{" of scalars" if scalar(one) else ""}'
    entry = out.setdefault(name, Counter())
    entry.update(count=one.count, bytes=one.count * one.bytes)
  return {name: dict(entry) for name, entry in sorted(out.items())}


PROGRAMS: dict[str, Callable] = {
  'layer, forward': partial(layer, of='forward'),
  'layer, forward and backward': partial(layer, of='both'),
  "layer, input's gradient": partial(layer, of='input'),
  'training step': train_step,
  'attack step': attack_step,
}


def main():
  """Compiles, prints the table and the line of JSON."""
  rows, results = [], {}
  for name, shape in MESHES.items():
    mesh = mesh_lib.create(shape)
    for experts in EXPERT_MODES:
      for what, program in PROGRAMS.items():
        found = summary(program(mesh, experts))
        results[f'{name} {experts}: {what}'] = found
        for kind, entry in found.items():
          rows.append(
            (name, experts, what, kind, entry['count'], entry['bytes'])
          )
  print(table(('mesh', 'experts', 'of', 'collective', 'n', 'bytes'), rows))
  print(json.dumps(results))


if __name__ == '__main__':
  main()
