"""The command line of launch/tpu.py, and gcloud's answers explained."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
POD = ['--name=moe', '--project=proj', '--zone=us-west4-a']
SHAPE = ['--type=v5litepod-16', '--spot']


def dry(*arguments):
  """The words of each command that the program prints, with no tools."""
  verb, *rest = arguments
  done = subprocess.run(
    [sys.executable, ROOT / 'launch/tpu.py', verb, '--dry-run', *rest],
    capture_output=True,
    text=True,
    env={'PATH': '/nowhere'},
    check=True,
  )
  lines = done.stdout.splitlines()
  return [shlex.split(line) for line in lines if not line.startswith('#')]


def value(words, flag):
  [found] = [w for w in words if w.startswith(f'--{flag}=')]
  return found.split('=', 1)[1]


@pytest.mark.parametrize(
  ('type', 'runtime'),
  [
    ('v4-64', 'tpu-ubuntu2204-base'),
    ('v5litepod-64', 'v2-alpha-tpuv5-lite'),
    ('v5p-128', 'v2-alpha-tpuv5'),
    ('v6e-256', 'v2-alpha-tpuv6e'),
  ],
)
def test_create_names_the_image_of_each_type(type, runtime):
  [words] = dry('create', *POD, f'--type={type}')
  expected = ['create', 'moe', '--node-id=moe', f'--accelerator-type={type}']
  expected += [f'--runtime-version={runtime}', *POD[1:], '--quiet']
  assert words == ['gcloud', 'compute', 'tpus', 'queued-resources', *expected]


def test_create_of_several_spot_slices_with_an_image():
  more = ['--slices=3', '--spot', '--runtime=mine']
  [words] = dry('create', *POD, '--type=v6e-16', *more)
  assert {'--node-count=3', '--node-prefix=moe', '--spot'} <= set(words)
  assert '--runtime-version=mine' in words
  assert not [w for w in words if w.startswith('--node-id')]


def test_words_survive_both_shells():
  """Ours, and that of the worker."""
  workdir = "/mnt/share/it's $HOME"
  run = [f'--workdir={workdir}', '--config=configs/digits_moe.py']
  theirs = ['--config.attack.eps=(0.1, 0.2)', '--config.data.dir=a;b']
  _, start = dry('start', *POD, *run, '--', *theirs)
  assert {'--worker=all', '--node=all'} <= set(start)
  script = value(start, 'command').replace(
    'vmoe_robust/launch/tpu_worker.sh', '-c'
  )
  echo = 'for word in "$0" "$@"; do printf "%s\\n" "$word"; done'
  words = shlex.split(script)
  assert words[:3] == ['bash', '-c', 'start']
  heard = subprocess.run(
    ['bash', '-c', script.replace('-c', f'-c {shlex.quote(echo)}', 1)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert heard.stdout.splitlines() == ['start', workdir, run[1], *theirs]


def test_a_dry_run_says_what_a_run_does(cloud, capfd):
  cloud.run_is('echo finished')
  flags = [*POD, *SHAPE, *cloud.run_flags()]
  cloud.tpu('up', *flags, '--dry-run')
  said = capfd.readouterr().out.splitlines()
  said = [shlex.split(line) for line in said if not line.startswith('#')]
  assert not (cloud.folder / 'calls.jsonl').exists()
  cloud.tpu('up', *flags)
  # Each installation packs into a folder of its own.
  here = lambda c: [w.split('/')[-1] if w.endswith('.gz') else w for w in c]
  drop = lambda found: [here(c) for c in found if 'describe' not in c]
  done = drop(cloud.calls())
  said = [c for c in drop(said) if c[0] == 'gcloud']
  assert [c for c in done if c in said] == done
  assert [c for c in said if c in done] == said


@pytest.mark.parametrize(
  ('said', 'words'),
  [
    (
      "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded.",
      ['no quota', '--project=proj', 'TPUV5sLitepod', 'iam-admin/quotas'],
    ),
    (
      'You do not currently have an active account selected.',
      ['not logged in', 'gcloud auth login'],
    ),
    (
      'PERMISSION_DENIED: Location us-west4-a is not found or access is '
      'unauthorized.',
      ['--zone=us-west4-a', 'locations list'],
    ),
    (
      'INVALID_ARGUMENT: Cloud TPU received a bad request. the accelerator '
      'v5litepod-16 was not found in zone us-west4-a',
      ['--type=v5litepod-16', 'accelerator-types list'],
    ),
    (
      'PERMISSION_DENIED: Cloud TPU API has not been used in project proj',
      ['services enable tpu.googleapis.com --project=proj'],
    ),
    (
      'PERMISSION_DENIED: Permission tpu.nodes.create denied',
      ['--project=proj', 'TPU Admin'],
    ),
    ('ALREADY_EXISTS: Resource moe already exists', ['--name=moe', '`up`']),
    ('INTERNAL: something new', ['something new']),
  ],
)
def test_what_gcloud_says_is_explained(cloud, said, words):
  (cloud.folder / 'errors.json').write_text(json.dumps({'create': [said]}))
  message = cloud.refused('create', *POD, *SHAPE)
  for word in words:
    assert word in message


@pytest.mark.parametrize('verb', ['delete', 'log', 'watch'])
def test_a_wrong_name(cloud, verb):
  more = [*SHAPE, *cloud.run_flags()] if verb == 'watch' else []
  message = cloud.refused(verb, *POD, *more)
  assert '--name=moe' in message and '--zone=us-west4-a' in message
  assert 'queued-resources list --project=proj --zone=us-west4-a' in message


def test_a_name_is_not_taken_for_a_reason(cloud):
  message = cloud.refused(
    'watch', '--name=quota', *POD[1:], *SHAPE, *cloud.run_flags()
  )
  assert '--name=quota: no such pod' in message


def test_without_gcloud(cloud):
  (cloud.bin / 'gcloud').unlink()
  message = cloud.refused('create', *POD, *SHAPE)
  assert 'gcloud is not installed' in message and 'sdk/docs/install' in message


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ('--type=v5e-64', ['v5litepod-64']),
    ('--name=Moe_1', ['a-z']),
    ('--zone=', ['--zone is empty']),
    ('--type=v5litepod-0', ['v5litepod-64']),
    ('--slices=0', ['1 or more']),
    ('--share=10.0.0.2', ['SERVER:/EXPORT']),
    ('--workdir=gs://bucket/moe', ['gs://bucket/moe', 'not in a bucket']),
    ('--workdir=/tmp/moe', ['/tmp/moe', 'shared folder']),
    ('--config=configs/nowhere.py', ['configs/nowhere.py', 'moe_b16.py']),
    ('--config=README.md', ['configs/']),
    ('--spott', ['--spott', '--help']),
  ],
)
def test_a_command_line_that_cannot_work(cloud, changed, words):
  message = cloud.refused('up', *POD, *SHAPE, *cloud.run_flags(), changed)
  for word in words:
    assert word in message
  assert not (cloud.folder / 'calls.jsonl').exists()


def test_what_follows_does_not_win_over_what_is_checked(cloud):
  for word in ('--config=x.py', '-workdir=/tmp/q', '--workdir'):
    rest = ('--', word)
    message = cloud.refused('up', *POD, *SHAPE, *cloud.run_flags(), *rest)
    assert f'{word} after --' in message


def test_what_a_verb_does_not_take(cloud):
  assert '--zone' in cloud.refused('delete', '--name=moe', '--project=p')
  assert '--config.x=1' in cloud.refused('delete', *POD, '--', '--config.x=1')
