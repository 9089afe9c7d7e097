"""`python -m vmoe_robust.checkpoint verify WORKDIR`, and other commands."""

import argparse
import contextlib
import sys

import jax

from vmoe_robust.checkpoint.export import export
from vmoe_robust.checkpoint.verify import show, verify
from vmoe_robust.checkpoint.weights import open_weights
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import model_card


def main(words: list[str] | None = None) -> int:
  """Does what the first word says; bad news are exit code 1."""
  parser = argparse.ArgumentParser(prog='python -m vmoe_robust.checkpoint')
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser(
    'verify', help='says which checkpoints are good, and what damaged others'
  )
  command.add_argument('path', help='WORKDIR, or WORKDIR/checkpoints/STEP')
  command.set_defaults(run=_verify)
  command = commands.add_parser(
    'export', help='writes weights to a file for other programs'
  )
  command.add_argument(
    'source', help='WORKDIR, WORKDIR/checkpoints/STEP, V-MoE prefix or file'
  )
  command.add_argument(
    'out', help='FILE.safetensors, or FILE.npz as released ViTs have it'
  )
  command.add_argument(
    '--overwrite', action='store_true', help='replace a file that is there'
  )
  command.add_argument(
    '--results',
    nargs='*',
    default=[],
    metavar='PATH',
    help='runs that attacked these weights, besides those in WORKDIR, for the '
    'model card',
  )
  command.add_argument(
    '--license', default='', help="of the model card, such as 'apache-2.0'"
  )
  command.set_defaults(run=_export)
  arguments = parser.parse_args(words)
  try:
    return arguments.run(arguments)
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1


def _verify(arguments) -> int:
  found = verify(arguments.path)
  print(show(found))
  return int(any(one.state != 'good' for one in found))


def _export(arguments) -> int:
  source, out = arguments.source, arguments.out
  with contextlib.closing(open_weights(source, field='source')) as weights:
    model_card.require_results(arguments.results)
    card = model_card.card_path(out, arguments.overwrite)
    export(weights, out, overwrite=arguments.overwrite)
    print(f'{out}: {len(weights.shapes)} arrays of {source}')
    for line in model_card.write_card(
      weights, out, results=arguments.results, license=arguments.license
    ):
      print(f'not on the card: {line}', file=sys.stderr)
    print(f'{card}: the model card')
  return 0


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # a run may hold the accelerators
  sys.exit(main())
