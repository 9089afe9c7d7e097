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

import jax
import timing
from absl import app, flags
from subjects import dense, layer_programs, sparse

_TOKENS = flags.DEFINE_list('tokens', ['4096', '1024'], 'Tokens of a batch.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns that each program takes.')

SIZES = ((192, 768), (512, 2048))  # width and hidden units
EXPERTS, SELECTED = (8, 32), (1, 2)
IMAGE_TOKENS = 64


def waited(run):
  """What a call returns, once it is there."""
  return jax.block_until_ready(run())


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
  ready = {n: layer_programs(*way, x, cotangent) for n, way in ways.items()}
  found = {}
  for program in ready['dense']:
    runs = {name: partial(waited, ready[name][program]) for name in ways}
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
