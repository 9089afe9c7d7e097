"""The flags of `python -m vmoe_robust.experiment`.

All in one process of its own, for a second program's flags cannot be defined
in this one.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs.experiments import digits_paper
from vmoe_robust.experiment.parts import parts

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import contextlib, io, json, sys
from absl import flags
from vmoe_robust.config import command_line
from vmoe_robust.experiment import __main__ as program

answers = []
for arguments in json.loads(sys.stdin.read()):
  sys.argv = ['experiment', *arguments]
  flags.FLAGS.unparse_flags()
  for name in list(flags.FLAGS):
    if name.startswith('config.'):
      delattr(flags.FLAGS, name)
  for name in ('only', 'jobs', 'list', 'report', 'distributed', 'workdir'):
    flags.FLAGS[name].unparse()
  with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
      command_line.run(program.main, program.FIELDS)
    except SystemExit as stop:
      answers.append([stop.code, out.getvalue()])
print(json.dumps(answers))
"""
REFUSED = {
  '--only=9999': ['--only=9999 is no part', '1 to '],
  '--only=0': ['--only=0 is no part'],
  '--only=moe_e8_sed0': ["did you mean 'moe_e8_seed0'", ', ... (ALL in all)'],
  '--only=moe_e8_seed0/attacks/pgd': ['needs moe_e8_seed0, which is not st'],
  '--jobs=0': ['--jobs=0', 'use 1 to '],
  '--jobs=9999': ['--jobs=9999', 'use 1 to '],
  '--distributed': ['--only=NUMBER'],
  "--config.select=('moe',)": ["config.select='moe'", "'moe_e8'"],
  '--config.seed=1': [
    "no such field in --config: 'seed'",
    'Did you mean seeds',
  ],
  '--config.compilation_cache=x': [
    "no such field in --config: 'compilation_cache'",
    'There are runs, attacks,',
  ],
  '--workdir=gs://b/x': ['gs://b/x', 'mounted folder'],
  '--config=configs/experiments/none.py': ['none.py'],
  '--config=configs/digits_moe.py': ['is that of one run'],
}
LIST = ["--config.select=('dense',)", '--config.seeds=(7,)', '--list']


@pytest.mark.slow
def test_flags(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  every = parts(digits_paper.get_config(), tmp_path)
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  digits = '--config=configs/experiments/digits_paper.py'
  asked = [[digits, argument] for argument in REFUSED]
  asked = [a[1:] if a[1].startswith('--config=') else a for a in asked]
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    input=json.dumps(
      [*asked, [digits, '--report', '--only=1'], [digits, *LIST]]
    ),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    timeout=300,
  )
  *refused, (both, _), (code, listed) = json.loads(done.stdout)
  assert both.startswith('error: --report is of all parts')
  for (message, _), words in zip(refused, REFUSED.values(), strict=True):
    assert message.startswith('error: ') and '\n' not in message
    for word in words:
      assert word.replace('ALL', str(len(every))) in message, message
  lines = listed.splitlines()
  assert not code and len(lines) == 10
  state = ['not', 'started', '1.37', 'TFLOP']
  assert lines[2].split() == ['1', 'dense_seed7', *state]
  assert lines[-1].endswith(': 1-1, 2-7')
  assert not (tmp_path / 'runs').exists()
