"""The command line: what is wrong ends in one line that says the way out."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.checkpoint.bucket import reached
from vmoe_robust import checkpoint, main
from vmoe_robust import config as config_lib
from vmoe_robust.config import command_line
from vmoe_robust.errors import SavedAndStopped

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = f'--config={ROOT}/configs/digits_moe.py'
ATTACK = f'--config={ROOT}/configs/attack_pgd.py'


def refused(capsys, monkeypatch, *arguments):
  """What the program says of arguments that it refuses."""
  monkeypatch.setattr(sys, 'argv', ['main', *arguments])
  flags.FLAGS.unparse_flags()
  for name in list(flags.FLAGS):
    if name.startswith('config.'):  # of an earlier command line
      delattr(flags.FLAGS, name)
  with pytest.raises(SystemExit) as stop:
    command_line.run(main.main)
  message = str(stop.value)
  assert message.startswith('error: '), message
  assert '\n' not in message
  return message


STEPS = '--config.train.steps'


@pytest.mark.parametrize(
  ('raised', 'line'),
  [
    (KeyboardInterrupt(), 'stopped; the same command goes on where it can\n'),
    (SavedAndStopped('stopped at step 7'), 'stopped at step 7\n'),
  ],
)
def test_what_was_stopped_is_one_line(capsys, monkeypatch, raised, line):
  def stopped(argv):
    raise raised

  monkeypatch.setattr(sys, 'argv', ['main', DIGITS])
  flags.FLAGS.unparse_flags()
  with pytest.raises(SystemExit) as stop:
    command_line.run(stopped)
  assert stop.value.code == 130
  assert capsys.readouterr() == ('', line)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Nothing is written to the checkout."""
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['model.experts=10', 'mesh.expert=4'], ['experts=10', '1, 2, 5 or 10']),
    (['model.router.selected=9'], ['selected=9', 'config.model.experts=8']),
    (['train.batch_size=60'], ['config.train.batch_size=60', '64']),
    (['data.image_size=9'], ['image_size=9', 'patch=2', '8 or 10']),
    (['data.name=digit'], ["data.name='digit'", "'digits'"]),
    (['data.split=trian'], ['config.data.split', 'trian', 'train']),
    (['data.eval_split=test[:0]'], ['test[:0]']),
    (['model.router.name=topk'], ["router.name='topk'", "'top_k'"]),
    (['attack.name=pdg'], ["attack.name='pdg'", "'pgd'"]),
    (['attack.eps=(-0.1,)'], ['config.attack.eps=-0.1']),
    (['attack.eps=(8.0,)'], ['config.attack.eps=8.0', '0.0313725']),
    (['mode=atack'], ["config.mode='atack'", "'attack'"]),
    (['mesh.data=3'], ['config.mesh.data=3', '8 devices']),
    (['train.setps=3'], ['setps', 'steps']),
    (['train.steps=3.5'], ['config.train.steps=3.5']),
    (
      ['train.objective=trades'],
      ['is a group', 'as config.train.objective.name'],
    ),
    (['attack=pgd'], ['config.attack=pgd', 'as config.attack.name']),
    (['train.steps=0'], ['config.train.steps=0', '1 or more']),
    (['model.moe_blocks=(9,)', 'model.moe_every=0'], ['moe_blocks']),
    (['init_from=nowhere'], ["config.init_from='nowhere'", 'is no directory']),
    (['model.num_classes=7'], ['num_classes=7', '10']),
    (['data.name=cifar10', 'data.dir=/nowhere'], ['/nowhere', 'cifar10']),
  ],
  ids=lambda v: v[0] if isinstance(v, list) else None,
)
def test_bad_training_is_refused(capsys, monkeypatch, arguments, words):
  given = [f'--config.{argument}' for argument in arguments]
  message = refused(capsys, monkeypatch, DIGITS, *given)
  for word in words:
    assert word in message, message
  assert not list(pathlib.Path('runs').glob('*/checkpoints/*'))


def test_no_config_and_no_such_config(capsys, monkeypatch):
  assert 'configs/digits_moe.py' in refused(capsys, monkeypatch)
  missing = refused(capsys, monkeypatch, '--config=nowhere.py')
  assert 'nowhere.py' in missing
  assert 'flag' in refused(capsys, monkeypatch, DIGITS, 'stray')


GET = """
from vmoe_robust import config
def get_config():
  c = config.default()
"""


def test_no_such_field(capsys, monkeypatch):
  near = refused(capsys, monkeypatch, DIGITS, '--config.attack.stpes=1')
  assert 'mean steps' in near
  other = refused(capsys, monkeypatch, DIGITS, '--config.train.hidden=1')
  assert 'a field of another group: config.model.hidden' in other
  far = refused(capsys, monkeypatch, DIGITS, '--config.attack.radius=1')
  assert "'radius'" in far and 'config/fields.py' in far


def test_values_and_files_that_are_misspelt(capsys, monkeypatch):
  say = lambda *more: refused(capsys, monkeypatch, *more)
  assert 'steps=many is no whole number; write' in say(DIGITS, f'{STEPS}=many')
  assert 'steps= is no whole number' in say(DIGITS, f'{STEPS}=')
  ema = say(DIGITS, '--config.train.ema=x')
  assert 'config.train.ema=x is no number; write one, such as' in ema
  end = say(DIGITS, '--config.attack.at_end=maybe')
  assert 'at_end=maybe is neither True nor False; write one, such' in end
  file = say(DIGITS.replace('digits_moe', 'digit_moe'))
  assert 'did you mean' in file and 'configs/digits_moe.py' in file


def test_workdir_that_cannot_be_written(capsys, monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  workdir = f'--workdir={tmp_path}/file/run'
  assert 'not writable' in refused(capsys, monkeypatch, DIGITS, workdir)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('x = (\n', "line 1: '(' was never closed"),
    ('x = 1\n', 'a file without get_config()'),
    (GET + '  import math\n  return math.get_configs()\n', "'get_configs'"),
    (GET + "  return {}['']\n", "KeyError: ''"),
    (GET + '  c.train.stepz = 3\n  return c\n', 'did you mean config.train.st'),
    (GET + '  del c.train.steps\n  return c\n', 'config.train.steps is missi'),
    (GET + '  return c.train\n', 'is of no run'),
    (GET + "  return {'mode': 'train'}\n", 'returns a dict, no ConfigDict'),
    (GET + "  c.seed = int('1 2')\n  return c\n", "10: '1 2'"),
    (GET + "  open('no.json')\n  return c\n", "directory: 'no.json'"),
    ('from configs.experiments.digits_paper import *\n', 'is of many runs'),
  ],
)
def test_a_file_that_is_no_configuration(
  tmp_path, capsys, monkeypatch, text, words
):
  # Of another file in this process, whose get_config would stay.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  (tmp_path / 'wrong.py').write_text(text)
  flag = f'--config={tmp_path}/wrong.py'
  assert words in refused(capsys, monkeypatch, flag)


def test_a_workdir_that_cannot_be_is_refused_and_leaves_nothing(
  capsys, monkeypatch, tmp_path
):
  with reached(tmp_path):
    said = refused(capsys, monkeypatch, DIGITS, '--workdir=gs://forbidden/run')
  assert "--workdir='gs://forbidden/run' cannot be reached: Forbidden" in said
  said = refused(capsys, monkeypatch, DIGITS, '--workdir=none://bucket/run')
  assert "--workdir='none://bucket/run' is an address of an unknown" in said
  kept = (DIGITS, '--config.attack.save_images', '--workdir=gs://bucket/run')
  said = refused(capsys, monkeypatch, *kept)
  assert 'set config.attack.save_images=False, or give a folder' in said
  said = refused(capsys, monkeypatch, DIGITS, '--workdir=~no.such.user/run')
  assert 'unknown user' in said
  assert not list(tmp_path.iterdir())


def test_bad_checkpoints_are_refused(capsys, monkeypatch, tmp_path):
  attack = lambda path: refused(
    capsys, monkeypatch, ATTACK, f'--config.checkpoint={path}'
  )
  assert 'names nothing' in attack('')
  assert 'is no directory' in attack('nowhere')
  (tmp_path / 'empty').mkdir()
  assert 'holds no checkpoint' in attack('empty')
  begun = tmp_path / 'begun'
  begun.mkdir()
  checkpoint.save_config(begun, config_lib.default())
  checkpoint.Checkpoints(begun, config_lib.default().save).close()
  assert 'no finished checkpoint' in attack('begun')


@pytest.mark.parametrize(
  ('argument', 'words'),
  [
    ('model.router.selected=1', 'set config.num_selected'),
    ('data.resize=0', 'it is the default'),
    ('model.moe_blocks=()', 'it is the default'),
    ('attack.steps=40', 'names nothing'),  # is read, and goes on to the next
  ],
)
def test_a_default_is_not_taken_for_the_run_s_own(
  capsys, monkeypatch, argument, words
):
  assert words in refused(capsys, monkeypatch, ATTACK, f'--config.{argument}')


def test_a_checkpoint_of_another_model_is_refused(
  capsys, monkeypatch, tmp_path
):
  config = config_lib.default()
  config.model.update(dict(num_classes=10, channels=1))
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run', config.save)
  trees = {'params': {'head': np.zeros(3)}}
  checkpoints.save(1, trees, {'data': None})
  checkpoints.close()
  checkpoint.save_config(tmp_path / 'run', config)
  found = refused(capsys, monkeypatch, ATTACK, '--config.checkpoint=run')
  assert 'another model' in found


def folder_with_a_corrupt_image(root):
  rng = np.random.default_rng(0)
  for split, count in (('train', 24), ('test', 9)):
    for i in range(count):
      path = root / split / 'ab'[i % 2] / f'{i:02}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(path)
  bad = root / 'test' / 'a' / '04.jpg'
  bad.write_bytes(bad.read_bytes()[:200])
  return bad


@pytest.mark.slow
def test_a_corrupt_image_is_named_or_skipped(tmp_path):
  """Through the real program, as a newcomer with a folder of images."""
  bad = folder_with_a_corrupt_image(tmp_path / 'images')
  command = [sys.executable, '-m', 'vmoe_robust.main', DIGITS]
  command += ['--config.train.steps=2', '--config.train.batch_size=16']
  command += ['--config.model.layers=1', '--config.model.moe_every=1']
  command += [
    '--config.data.name=folder',
    f'--config.data.dir={bad.parents[2]}',
  ]
  command += ['--config.attack.steps=1', '--config.eval.batch_size=8']
  run = lambda *more: subprocess.run(
    [*command, *more],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    timeout=300,
  )
  stopped = run('--workdir=one')
  assert stopped.returncode != 0
  last = stopped.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and '04.jpg' in last and 'skip' in last
  finished = run('--workdir=two', '--config.data.on_corrupt=skip')
  assert finished.returncode == 0, finished.stderr
  assert '1 image skipped, which cannot be read' in finished.stdout
  assert '8 examples' in finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['rocm', 'nonsense'])
def test_devices_that_are_not_there_are_one_line(platform):
  ended = subprocess.run(
    [sys.executable, '-m', 'vmoe_robust.main', DIGITS, '--workdir=run'],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': platform},
    timeout=300,
  )
  assert ended.returncode == 1
  *_, last = ended.stderr.strip().splitlines()
  assert last.startswith('error: JAX cannot use its') and platform in last
  assert 'Traceback' not in ended.stderr
