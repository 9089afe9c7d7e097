"""The SLURM script, against an srun that starts real processes."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'launch/slurm.sh'
CONFIG = 'configs/digits_moe.py'
# Two tasks whose files are named as srun names them.
SRUN = r"""
import os, subprocess, sys
at = next(i for i, word in enumerate(sys.argv) if i and word[0] != '-')
flags = dict(word.partition('=')[::2] for word in sys.argv[1:at])
assert flags['--open-mode'] == 'append'
codes = []
for task in ('0', '1'):
  out = open(flags['--output'].replace('%t', task), 'a')
  err = open(flags['--error'].replace('%t', task), 'a')
  env = os.environ | {'SLURM_PROCID': task}
  done = subprocess.run(sys.argv[at:], stdout=out, stderr=err, env=env)
  codes.append(done.returncode)
sys.exit(max(codes))
"""


def run(*arguments, cwd=ROOT, **environment):
  return subprocess.run(
    ['bash', SCRIPT, *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={'PATH': os.environ['PATH']} | environment,
    check=False,
  )


def refused(*arguments, **options):
  done = run(*arguments, **options)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  return done.stderr


@pytest.fixture
def cluster(tmp_path, tool, python_tool):
  """A folder, with srun, scontrol and a run whose end the test writes."""
  python_tool('srun', SRUN)
  tool('scontrol', f'#!/bin/sh\necho "$*" >> {tmp_path}/scontrol\n')
  tool(
    'python',
    '#!/bin/sh\necho "trouble of $SLURM_PROCID" >&2\n'
    f'[ "$SLURM_PROCID" = 0 ] || exit 0\n. {tmp_path}/run\n',
  )
  return tmp_path


def submit(cluster, end):
  (cluster / 'run').write_text(end)
  return run(CONFIG, f'{cluster}/a run', SLURM_JOB_ID='42')


def test_a_dry_run_prints_the_command(tool):
  theirs = ['--config.attack.eps=(0.1, 0.2)', "--config.data.dir=it's $HOME"]
  done = run('--dry-run', CONFIG, '/shared/a run', *theirs)
  words = shlex.split(done.stdout)
  assert words[0] == 'srun'
  assert '--kill-on-bad-exit=1' in words
  assert '--output=/shared/a run/logs/%t.out' in words
  assert '--error=/shared/a run/logs/%t.err' in words
  assert words[words.index('python') + 1 :] == [
    *('-m', 'vmoe_robust.main', '--distributed'),
    f'--config={CONFIG}',
    '--workdir=/shared/a run',
    *theirs,
  ]


def test_options_for_sbatch():
  lines = SCRIPT.read_text().splitlines()
  options = {line.split()[1] for line in lines if line.startswith('#SBATCH ')}
  assert {'--requeue', '--signal=TERM@300', '--open-mode=append'} <= options
  value = lambda name: [o for o in options if o.startswith(f'--{name}=')][0][-1]
  # JAX under SLURM: a process a GPU, and each sees all of its node.
  assert value('gpus-per-node') == value('ntasks-per-node')
  assert not [o for o in options if 'per-task=' in o and 'gpu' in o]
  # sbatch reads its options only above the first command.
  first = next(i for i, line in enumerate(lines) if line and line[0] != '#')
  assert all(i < first for i, n in enumerate(lines) if n.startswith('#SBATCH'))


def test_jax_finds_its_place_under_slurm(monkeypatch):
  """What the script relies on, in the installed JAX."""
  from jax._src.clusters import SlurmCluster

  for name, value in {
    'SLURM_JOB_ID': '42',
    'SLURM_STEP_NODELIST': 'node[003-004]',
    'SLURM_NTASKS': '16',
    'SLURM_PROCID': '9',
    'SLURM_LOCALID': '1',
  }.items():
    monkeypatch.setenv(name, value)
  assert SlurmCluster.is_env_present()
  assert SlurmCluster.get_process_count() == 16
  assert SlurmCluster.get_process_id() == 9
  assert SlurmCluster.get_local_process_id() == 1
  assert SlurmCluster.get_coordinator_address(None, None).startswith('node003:')


def test_each_process_keeps_its_errors(cluster):
  done = submit(cluster, 'echo the table')
  assert done.returncode == 0, done.stderr
  logs = cluster / 'a run/logs'
  assert (logs / '0.err').read_text() == 'job 42 starts\ntrouble of 0\n'
  assert (logs / '1.err').read_text() == 'trouble of 1\n'
  assert (logs / '0.out').read_text() == 'job 42 starts\nthe table\n'
  assert not (cluster / 'scontrol').exists()


def test_a_run_that_stopped_is_queued_again_until_it_is_finished(cluster):
  stopped = "echo 'stopped at step 7 and saved' >&2; exit 130"
  assert submit(cluster, stopped).returncode == 0
  assert (cluster / 'scontrol').read_text() == 'requeue 42\n'
  # An attack says it with its errors (tests/distributed/test_pod.py).
  left = "echo 'stopped: process 3 ended the run' >&2; exit 130"
  assert submit(cluster, left).returncode == 0
  assert (cluster / 'scontrol').read_text() == 2 * 'requeue 42\n'
  # One that fails is not, although it had stopped before.
  assert submit(cluster, 'exit 3').returncode == 3
  assert submit(cluster, 'echo the table').returncode == 0
  assert (cluster / 'scontrol').read_text() == 2 * 'requeue 42\n'


def test_what_cannot_work(tool, tmp_path):
  assert 'sbatch launch/slurm.sh' in refused()
  assert 'srun is not installed' in refused(CONFIG, str(tmp_path))
  assert 'nowhere.py does not exist' in refused('nowhere.py', '/shared/x')
  assert 'not in a bucket' in refused('--dry-run', CONFIG, 'gs://bucket/x')
  assert 'submit from there' in refused(CONFIG, '/shared/x', cwd=tmp_path)
  for workdir in ('', '--config.train.steps=3'):
    words = f"WORKDIR='{workdir}' is no folder"
    assert words in refused('--dry-run', CONFIG, workdir)
  tool('srun', '#!/bin/sh\n')
  assert 'sbatch' in refused(CONFIG, str(tmp_path))
