r"""Trains on TPU slices of GKE: fills in launch/gke.yaml and applies it.

  python launch/gke.py --name=moe --image=REGION-docker.pkg.dev/P/R/moe:1 \
    --type=v5e --topology=8x8 --spot --config=configs/moe_b16.py \
    --workdir=/mnt/share/moe_b16 -- --config.data.dir=/mnt/share/tfds

What follows '--' is given to vmoe_robust.main. --dry-run prints the manifest
and the command. Needs Python and kubectl alone; launch/README.md says more.
"""

import argparse
import json
import math
import re
import shlex
import string
import sys
from pathlib import Path

import commands
from commands import fail

ROOT = Path(__file__).resolve().parents[1]
MOUNT = '/mnt/share'
APPLY = ['kubectl', 'apply', '--filename=-']
# GKE's names of TPU nodes, and the sizes of slice that are one machine.
ACCELERATORS = {
  'v4': ('tpu-v4-podslice', (4,)),
  'v5e': ('tpu-v5-lite-podslice', (1, 4, 8)),
  'v5p': ('tpu-v5p-slice', (4,)),
  'v6e': ('tpu-v6e-slice', (1, 4, 8)),
}
# Slices of v5e and v6e.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
# Chips on each machine of a slice of several.
_CHIPS = 4
_FIRST = 'batch.kubernetes.io/job-completion-index=0'
_KUBECTL = 'see https://kubernetes.io/docs/tasks/tools'


def machines(type: str, topology: str) -> tuple[int, int]:
  """How many machines a slice has, and how many chips each of them."""
  if not re.fullmatch(r'\d+(x\d+){1,2}', topology):
    fail(f'--topology={topology} must be as 4x4 (v5e, v6e) or 2x2x4 (v4, v5p)')
  sides = [int(side) for side in topology.split('x')]
  if not all(sides):
    fail(f'--topology={topology} has a side of 0; try 4x4 or 2x2x4')
  flat = type in ('v5e', 'v6e')
  if len(sides) != (2 if flat else 3):
    other = '4x4' if flat else '2x2x4'
    fail(f'--topology={topology} is not one of --type={type}; try {other}')
  if flat and topology not in _FLAT:
    fail(
      f'--topology={topology} is no slice of --type={type}; use one of '
      f'{", ".join(_FLAT)}'
    )
  deep = sides == sorted(sides) and all(n == 2 or n % 4 == 0 for n in sides)
  if not flat and not deep and topology != '2x2x1':
    fail(
      f'--topology={topology} is no slice of --type={type}; use 2x2x1, or '
      'sides of 2 or multiples of 4 that do not fall, as in 2x4x4'
    )
  chips = math.prod(sides)
  if chips in ACCELERATORS[type][1]:
    return 1, chips
  return chips // _CHIPS, _CHIPS


def manifest(flags: argparse.Namespace) -> str:
  """The JobSet as YAML; what is filled in is JSON, which is YAML too."""
  hosts, chips = machines(flags.type, flags.topology)
  nodes = {
    'cloud.google.com/gke-tpu-accelerator': ACCELERATORS[flags.type][0],
    'cloud.google.com/gke-tpu-topology': flags.topology,
  }
  if flags.spot:
    nodes['cloud.google.com/gke-spot'] = 'true'
  # Kubernetes would replace $(NAME).
  args = [word.replace('$(', '$$(') for word in flags.arguments]
  values = dict(
    name=flags.name,
    image=flags.image,
    slices=flags.slices,
    hosts=hosts,
    chips=chips,
    nodes=nodes,
    args=args,
    claim=flags.claim,
  )
  template = string.Template((ROOT / 'launch' / 'gke.yaml').read_text())
  return template.substitute(
    {k: json.dumps(v, ensure_ascii=False) for k, v in values.items()}
  )


def meaning(text: str) -> str:
  """What a message of kubectl means, and the way out."""
  meanings = (
    (
      r'no matches for kind "JobSet"|server doesn.t have a resource type',
      'the cluster has no JobSet; install it: '
      'https://jobset.sigs.k8s.io/docs/installation',
    ),
    (
      r'connection to the server|current-context|dial tcp|no configuration',
      'kubectl reaches no cluster; run: gcloud container clusters '
      'get-credentials CLUSTER --location=LOCATION --project=PROJECT',
    ),
    (
      r'Unauthorized|gke-gcloud-auth-plugin|must be logged in',
      'kubectl is not logged in; run: gcloud auth login && gcloud components '
      'install gke-gcloud-auth-plugin',
    ),
    (r'[Ff]orbidden.*quota|exceeded quota', "the namespace's quota is used up"),
    (r'[Ff]orbidden', 'this account may not create JobSets in the namespace'),
    (
      r'immutable|field is immutable',
      'a run of this --name exists; take another, or run: kubectl delete '
      'jobset NAME',
    ),
  )
  for pattern, says in meanings:
    if re.search(pattern, text):
      return says
  return 'kubectl failed'


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line, checked as far as that goes without the cluster."""
  ours, theirs = commands.split(argv)
  parser = commands.Parser(
    prog='launch/gke.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--name', required=True, help='of the run')
  add('--image', required=True, help='made with launch/Dockerfile')
  add('--type', required=True, choices=ACCELERATORS, help='of TPU')
  add('--topology', required=True, help='of a slice, for example 8x8')
  add('--slices', type=int, default=1, help='how many such slices')
  add('--spot', action='store_true', help='cheaper, may be taken away')
  add('--claim', default='vmoe-share', help=f'of the volume at {MOUNT}')
  add('--config', required=True, help='for example configs/moe_b16.py')
  add('--workdir', required=True, help=f'for example {MOUNT}/moe_b16')
  add('--dry-run', action='store_true', help='print, and apply nothing')
  flags = parser.parse_args(ours)
  # Names of pods and jobs come from it, of at most 63 letters.
  commands.check_name(flags.name, most=40)
  for field in ('image', 'claim'):
    if not getattr(flags, field).strip():
      fail(f'--{field} is empty; give one, or see launch/README.md')
  if flags.slices < 1:
    fail(f'--slices={flags.slices} must be 1 or more')
  flags.config = commands.check_paths(ROOT, flags.config, flags.workdir, MOUNT)
  commands.check_rest(theirs)
  flags.arguments = [flags.workdir, f'--config={flags.config}', *theirs]
  return flags


def main(argv: list[str]) -> None:
  """The program."""
  flags = parse(argv)
  text = manifest(flags)
  if flags.dry_run:
    print(f'{text}# {shlex.join(APPLY)}')
    return
  commands.need('kubectl', _KUBECTL)
  try:
    print(commands.Shell().ask(APPLY, text), end='')
  except commands.CommandError as error:
    fail(f'{meaning(error.stderr)} ({error.reason()})')
  follow = f'job-name={flags.name}-slice-0,{_FIRST}'
  print(f'follow: kubectl logs --follow --selector={follow}')
  print(f'delete: kubectl delete jobset {flags.name}')


if __name__ == '__main__':
  main(sys.argv[1:])
