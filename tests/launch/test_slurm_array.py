"""The script for arrays of jobs, against an srun that starts a process."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

from configs.experiments import cifar10_paper, digits_paper
from vmoe_robust.experiment.parts import parts

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'launch/slurm_array.sh'
CONFIG = 'configs/experiments/digits_paper.py'
SRUN = r"""
import subprocess, sys
at = next(i for i, word in enumerate(sys.argv) if i and word[0] != '-')
flags = dict(word.partition('=')[::2] for word in sys.argv[1:at])
assert flags['--open-mode'] == 'append'
out = open(flags['--output'].replace('%t', '0'), 'a')
err = open(flags['--error'].replace('%t', '0'), 'a')
sys.exit(subprocess.run(sys.argv[at:], stdout=out, stderr=err).returncode)
"""
STOPPED = "echo 'stopped at step 7 and saved' >&2; exit 130"
# As tests/distributed/test_pod.py has it.
LEFT = "echo 'stopped by a signal; start all again' >&2; exit 130"


def run(*arguments, cwd=ROOT, **environment):
  return subprocess.run(
    ['bash', SCRIPT, *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={'PATH': os.environ['PATH']} | environment,
    check=False,
  )


@pytest.fixture
def cluster(tmp_path, tool, python_tool):
  """A folder, with srun, scontrol and a part whose end the test writes."""
  python_tool('srun', SRUN)
  tool('scontrol', f'#!/bin/sh\necho "$*" >> {tmp_path}/scontrol\n')
  tool('python', f'#!/bin/sh\necho "$*" > {tmp_path}/said\n. {tmp_path}/run\n')
  return tmp_path


def submit(cluster, end):
  (cluster / 'run').write_text(end)
  place = dict(SLURM_ARRAY_TASK_ID='17', SLURM_ARRAY_JOB_ID='42')
  return run(CONFIG, f'{cluster}/a run', '--config.seeds=(0,)', **place)


def requeued(cluster):
  path = cluster / 'scontrol'
  return path.read_text().splitlines() if path.exists() else []


def test_a_dry_run_prints_the_command(tool):
  done = run('--dry-run', CONFIG, '/shared/a run', '--config.seeds=(0, 1)')
  words = shlex.split(done.stdout)
  assert words[0] == 'srun' and '--kill-on-bad-exit=1' in words
  assert '--output=/shared/a run/logs/1/%t.out' in words
  assert words[words.index('python') + 1 :] == [
    *('-m', 'vmoe_robust.experiment', '--distributed', '--only=1'),
    f'--config={CONFIG}',
    '--workdir=/shared/a run',
    '--config.seeds=(0, 1)',
  ]


def test_an_element_runs_its_part_and_keeps_its_output(cluster):
  done = submit(cluster, 'echo the table; echo trouble >&2')
  assert done.returncode == 0, done.stderr
  assert '--only=17 ' in (cluster / 'said').read_text()
  logs = cluster / 'a run/logs/17'
  assert (logs / '0.out').read_text() == 'part 17 starts\nthe table\n'
  assert (logs / '0.err').read_text() == 'part 17 starts\ntrouble\n'
  assert not requeued(cluster)


def test_what_stopped_is_queued_again_and_what_failed_is_not(cluster):
  assert submit(cluster, STOPPED).returncode == 0
  assert requeued(cluster) == ['requeue 42_17']
  assert submit(cluster, LEFT).returncode == 0
  assert requeued(cluster) == 2 * ['requeue 42_17']
  # Without a word, though an earlier start had stopped.
  assert submit(cluster, 'exit 137').returncode == 137
  assert submit(cluster, 'exit 0').returncode == 0
  assert requeued(cluster) == 2 * ['requeue 42_17']


def test_what_cannot_work(tool, tmp_path):
  def refused(*arguments, **options):
    done = run(*arguments, **options)
    assert done.returncode == 1
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    return done.stderr

  assert 'sbatch --array' in refused()
  assert 'srun is not installed' in refused(CONFIG, str(tmp_path))
  assert 'nowhere.py does not exist' in refused('nowhere.py', '/shared/x')
  assert 'not to buckets' in refused('--dry-run', CONFIG, 'gs://bucket/x')
  assert 'submit from there' in refused(CONFIG, '/shared/x', cwd=tmp_path)
  tool('srun', '#!/bin/sh\n')
  assert 'not in an array' in refused(CONFIG, str(tmp_path))


@pytest.mark.parametrize(
  ('config', 'page'),
  [
    (cifar10_paper, 'launch/README.md'),
    (digits_paper, 'launch/slurm_array.sh'),
    (digits_paper, 'docs/experiments.md'),
  ],
)
def test_the_arrays_of_the_documents_are_those_of_the_list(
  config, page, monkeypatch
):
  """A training that no array starts would leave what judges it waiting."""
  monkeypatch.chdir(ROOT)
  stages = {}
  for part in parts(config.get_config(), 'x'):
    stages.setdefault(part.stage, []).append(part.number)
  trainings, *others = (f'{min(s)}-{max(s)}' for s in stages.values())
  found = set(re.findall(r'--array=([0-9-]+)', (ROOT / page).read_text()))
  assert trainings in found and found <= {trainings, *others}
