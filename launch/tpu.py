r"""Trains on a Cloud TPU pod: creates it, installs, starts, follows, resumes.

  python launch/tpu.py up --name=moe --project=P --zone=us-west4-a --spot \
    --type=v5litepod-64 --share=10.0.0.2:/vol1 --config=configs/moe_b16.py \
    --workdir=/mnt/share/moe_b16 -- --config.data.dir=/mnt/share/tfds

`up` may be run again at any time; it goes on where the pod is. What follows
'--' is given to vmoe_robust.main. --dry-run prints the commands and runs none.
Needs Python and gcloud alone; launch/README.md says more.
"""

import argparse
import json
import re
import shlex
import sys

import commands
from commands import CommandError, fail
from tpu_pod import MOUNT, RUNTIMES, Pod
from tpu_run import ROOT, Run

_GCLOUD = 'see https://cloud.google.com/sdk/docs/install'
_VERBS = {
  'up': 'create, install, start and follow, again after every preemption',
  'create': 'ask for the pod',
  'install': 'copy the working tree to all workers and install it',
  'start': 'start the run on all workers',
  'log': 'follow the first process; with --errors, the errors of all',
  'watch': 'follow a pod that exists, and resume after every preemption',
  'delete': 'give the pod back',
}
# What a pod answers in a dry run: states and, in small letters, the run's.
_ANSWERS = {
  'up': (
    *('MISSING', 'ACTIVE', 'absent'),
    *('ACTIVE', 'running', 'ACTIVE', 'exit 0'),
  ),
  'start': ('absent',),
  'watch': (
    *('ACTIVE', 'ACTIVE', 'running'),
    *('SUSPENDED', 'ACTIVE', 'absent'),
    *('ACTIVE', 'running', 'ACTIVE', 'exit 0'),
  ),
}


class Rehearsal(commands.Shell):
  """Prints the commands, and answers as a pod on which all goes well."""

  def __init__(self, verb: str):
    self._answers = list(_ANSWERS.get(verb, ()))

  def ask(self, command: list[str], given: str = '') -> str:
    """Prints a command, and gives the next of the answers."""
    self.show(command)
    answer = self._answers.pop(0)
    if answer == 'MISSING':
      raise CommandError(command, 1, 'NOT_FOUND')
    if answer.isupper():
      return json.dumps({'state': {'state': answer}})
    return answer

  def show(self, command: list[str]) -> None:
    """Prints a command."""
    print(shlex.join(command))


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line, checked as far as that goes without the cloud."""
  ours, theirs = commands.split(argv)
  parser = commands.Parser(
    prog='launch/tpu.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for verb, about in _VERBS.items():
    add = verbs.add_parser(verb, help=about, description=about).add_argument
    add('--name', required=True, help='of the pod')
    add('--project', required=True, help='of Google Cloud')
    add('--zone', required=True, help='for example us-west4-a')
    add('--dry-run', action='store_true', help='print the commands alone')
    if verb in ('up', 'create', 'watch'):
      add('--type', required=True, help='for example v5litepod-64, v6e-256')
      add('--runtime', help='the image; by default that of the type')
      add('--slices', type=int, default=1, help='how many such pods')
      add('--spot', action='store_true', help='cheaper, may be taken away')
    if verb in ('up', 'install', 'watch'):
      add('--share', required=True, help=f'NFS, SERVER:/EXPORT, at {MOUNT}')
    if verb in ('up', 'start', 'watch'):
      add('--config', required=True, help='for example configs/moe_b16.py')
      add('--workdir', required=True, help=f'for example {MOUNT}/moe_b16')
    if verb == 'log':
      add('--errors', action='store_true', help="every process's errors")
  flags = parser.parse_args(ours)
  _check(flags, theirs)
  flags.arguments = [f'--config={getattr(flags, "config", "")}', *theirs]
  return flags


def _check(flags: argparse.Namespace, theirs: list[str]):
  commands.check_name(flags.name, most=50)
  for field in ('project', 'zone'):
    if not getattr(flags, field).strip():
      fail(f'--{field} is empty; name that of the pod')
  if theirs and not hasattr(flags, 'config'):
    fail(f'{shlex.join(theirs)} after -- is for up, start and watch alone')
  if hasattr(flags, 'type'):
    if not re.fullmatch(rf'({"|".join(RUNTIMES)})-[1-9]\d*', flags.type):
      fail(
        f'--type={flags.type} is unknown; use v4-N, v5litepod-N (v5e), v5p-N '
        'or v6e-N, as in v5litepod-64'
      )
    if flags.slices < 1:
      fail(f'--slices={flags.slices} must be 1 or more')
  if hasattr(flags, 'share') and not re.fullmatch(r'[^:/]+:/.*', flags.share):
    fail(f'--share={flags.share} must be SERVER:/EXPORT, as in 10.0.0.2:/vol1')
  if hasattr(flags, 'config'):
    flags.config = commands.check_paths(
      ROOT, flags.config, flags.workdir, MOUNT
    )
    commands.check_rest(theirs)


def main(argv: list[str]) -> None:
  """The program."""
  flags = parse(argv)
  pod = Pod(flags.name, flags.project, flags.zone)
  if flags.dry_run:
    shell = Rehearsal(flags.verb)
  else:
    commands.need('gcloud', _GCLOUD)
    shell = commands.Shell()
  try:
    getattr(Run(pod, flags, shell), flags.verb)()
  except CommandError as error:
    meaning = pod.meaning(error.stderr, getattr(flags, 'type', ''))
    fail(f'{meaning} ({error.reason()})')
  except KeyboardInterrupt:
    fail('interrupted; what runs on the pod goes on: `log` follows, `up` keeps')


if __name__ == '__main__':
  main(sys.argv[1:])
