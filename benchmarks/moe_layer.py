"""Speed of the sparse MLP against a dense MLP of equal active FLOPs.

  python benchmarks/moe_layer.py [--tokens=4096,1024] [--rounds=9]

float32 on one device. Each program of the layer, router and plan included,
takes turns with the same program of a dense MLP whose hidden layer is K times
as wide; a number is the median over the rounds of the ratio of CPU-seconds of
the process. `fwd+bwd` is the gradient for weights and input, `grad-x` for the
input alone, which is what an attack asks for. All tokens are one group. A
table for people, then one line of JSON.
"""

import itertools
import json
import statistics
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import timing
from absl import app, flags

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models.moe import Grouping, Moe

_TOKENS = flags.DEFINE_list('tokens', ['4096', '1024'], 'Tokens of a batch.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns that each program takes.')

SIZES = ((192, 768), (512, 2048))  # width and hidden units
EXPERTS, SELECTED = (8, 32), (1, 2)
IMAGE_TOKENS = 64


def sparse(dim: int, mlp: int, experts: int, selected: int, dropless: bool):
  """The layer as a function of weights and tokens, and its fresh weights."""
  config = config_lib.default().model
  config.update(hidden=dim, mlp=mlp, experts=experts)
  config.router.selected = selected
  layer = Moe(config, jnp.float32, mesh_lib.create((1, 1, 1)))

  def grouping(images):
    return Grouping(
      mask=jnp.ones(images, bool),
      index=jnp.arange(images),
      images=images,
      dropless=dropless,
      train=False,
    )

  def apply(params, x):
    return layer.apply({'params': params}, x, grouping(len(x)))[0]

  x = jnp.zeros((1, IMAGE_TOKENS, dim))
  fresh = layer.init(jax.random.key(0), x, grouping(1))['params']
  return apply, nn.unbox(fresh)


def dense(dim: int, mlp: int):
  """A plain MLP as a function of weights and tokens, and its weights."""
  keys = jax.random.split(jax.random.key(1))
  draw = nn.initializers.xavier_uniform()
  params = dict(
    w1=draw(keys[0], (dim, mlp)),
    b1=jnp.zeros(mlp),
    w2=draw(keys[1], (mlp, dim)),
    b2=jnp.zeros(dim),
  )

  def apply(params, x):
    hidden = nn.gelu(x @ params['w1'] + params['b1'])
    return hidden @ params['w2'] + params['b2']

  return apply, params


def programs(apply, params, x, cotangent) -> dict:
  """What is timed, compiled: functions of no arguments."""

  def loss(params, x):
    return (apply(params, x) * cotangent).sum()

  found = {
    'fwd': apply,
    'fwd+bwd': jax.value_and_grad(loss, (0, 1)),
    'grad-x': jax.value_and_grad(loss, 1),
  }
  compile_ = lambda f: jax.jit(f).lower(params, x).compile()
  ready = {name: compile_(f) for name, f in found.items()}
  call = lambda f: jax.block_until_ready(f(params, x))
  return {name: partial(call, f) for name, f in ready.items()}


def ratios(shape: tuple, tokens: int) -> dict[str, float]:
  """Median ratios to the dense twin of every way and program."""
  dim, mlp, experts, selected = shape
  x = jax.random.normal(
    jax.random.key(2), (tokens // IMAGE_TOKENS, IMAGE_TOKENS, dim)
  )
  cotangent = jax.random.normal(jax.random.key(3), x.shape)
  ways = {
    'dense': dense(dim, mlp * selected),
    'capacity': sparse(*shape, dropless=False),
    'dropless': sparse(*shape, dropless=True),
  }
  ready = {n: programs(*way, x, cotangent) for n, way in ways.items()}
  found = {}
  for program in ready['dense']:
    runs = {name: ready[name][program] for name in ways}
    spent = timing.interleave(runs, _ROUNDS.value)
    for name in ('capacity', 'dropless'):
      found[f'{name} {program}'] = timing.ratio(spent, name, 'dense')
  return found


def main(_):
  """Measures, prints the table and the line of JSON."""
  result = {}
  for tokens in map(int, _TOKENS.value):
    rows = {}
    for (dim, mlp), experts, selected in itertools.product(
      SIZES, EXPERTS, SELECTED
    ):
      name = f'{dim}/{mlp} E={experts} K={selected}'
      rows[name] = ratios((dim, mlp, experts, selected), tokens)
      if len(rows) == 1:
        names = ''.join(f'{column:>18}' for column in rows[name])
        print(f'{f"N={tokens}":<20}{names}')
      _show(name, rows[name])
    rows['median'] = {
      column: statistics.median(row[column] for row in rows.values())
      for column in rows[name]
    }
    _show('median', rows['median'])
    result[f'N={tokens}'] = rows
  print(json.dumps(result))


def _show(name: str, row: dict[str, float]):
  print(f'{name:<20}' + ''.join(f'{v:>18.2f}' for v in row.values()))


if __name__ == '__main__':
  app.run(main)
