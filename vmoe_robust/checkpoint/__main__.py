"""`python -m vmoe_robust.checkpoint verify WORKDIR`."""

import argparse
import sys

from vmoe_robust.checkpoint.verify import show, verify
from vmoe_robust.config import UserError


def main():
  """Does what the first word says; bad news are exit code 1."""
  parser = argparse.ArgumentParser(prog='python -m vmoe_robust.checkpoint')
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser(
    'verify', help='says which checkpoints are good, and what damaged others'
  )
  command.add_argument('path', help='WORKDIR, or WORKDIR/checkpoints/STEP')
  command.set_defaults(run=_verify)
  arguments = parser.parse_args()
  try:
    sys.exit(arguments.run(arguments))
  except UserError as error:
    sys.exit(f'error: {error}')


def _verify(arguments) -> int:
  found = verify(arguments.path)
  print(show(found))
  return int(any(one.state != 'good' for one in found))


if __name__ == '__main__':
  main()
