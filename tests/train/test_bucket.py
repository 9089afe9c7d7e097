"""A run whose work directory is in a bucket, of a fake server."""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.checkpoint.bucket import reached
from tests.environment import child
from tests.train.test_loop import losses, small, wait_for
from vmoe_robust import config as config_lib
from vmoe_robust import staging
from vmoe_robust.checkpoint.verify import verify
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import attack
from vmoe_robust.report.results import read_results
from vmoe_robust.train import loop

ROOT = pathlib.Path(__file__).parents[2]
RUN = 'gs://bucket/runs/one'


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
  with reached(tmp_path_factory.mktemp('bucket')) as folder:
    yield folder


def run(mode, config, workdir):
  with staging.staged(workdir) as folder:
    mode.run(config, folder)


def start(config, workdir):
  """The program, and what it shows in a file."""
  file = workdir / 'config.py'
  file.write_text(
    'from vmoe_robust import config\n'
    f'get_config = lambda: config.from_json({config_lib.to_json(config)!r})\n'
  )
  program = [sys.executable, '-m', 'vmoe_robust.main', f'--config={file}']
  with (workdir / 'shown').open('w') as shown:
    return subprocess.Popen(
      [*program, f'--workdir={RUN}'],
      cwd=ROOT,
      env=child(TMPDIR=str(workdir)),
      stdout=shown,
      stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_killed_resumed_and_attacked_there_as_here(bucket, tmp_path, capsys):
  config = small(**{'save.every_steps': 2})
  killed, saved = start(config, tmp_path), bucket / 'runs/one/checkpoints'
  wait_for(lambda: list(saved.glob('[0-9]*/CHECKSUMS.json')), seconds=200)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  assert f'{RUN}: 5,658 parameters' in (tmp_path / 'shown').read_text()
  last = max(int(p.parent.name) for p in saved.glob('*/CHECKSUMS.json'))
  with contextlib.chdir(tmp_path):
    run(loop, config, RUN)
  run(loop, config, tmp_path / 'here')
  shown = capsys.readouterr().out
  assert f'resumed from step {last} of {RUN}' in shown
  assert f'written to {RUN}: results.json' in shown
  assert f'step 12 of {RUN}' in shown
  there, here = losses(bucket / 'runs/one'), losses(tmp_path / 'here')
  assert there[12] == here[12]  # digit for digit
  assert {s.state for s in verify(RUN)} == {'good'}
  assert len(verify(RUN)) == 3  # the configuration and the newest two
  run(loop, config, RUN)
  assert f'{RUN} is finished' in capsys.readouterr().out
  config = config_lib.default()
  config.mode, config.checkpoint = 'attack', RUN
  config.data.update(dict(name='', split='test'))
  config.attack.update(dict(steps=2, eps=(0.02, 0.1)))
  run(attack, config, 'gs://bucket/attack')
  found = read_results('gs://bucket/attack')
  assert found['weights']['checkpoint'] == RUN
  trained = read_results(RUN)
  key = 'robust_accuracy'
  assert [r[key] for r in found['rows']] == [r[key] for r in trained['rows']]
  there = {p.name for p in (bucket / 'attack').rglob('*') if p.is_file()}
  assert {'results.json', 'records.parquet', 'robustness.svg'} <= there
  assert not list(bucket.rglob('unfinished/*'))


def test_what_changes_is_copied_and_what_goes_is_removed(bucket):
  there, address = bucket / 'some/folder', 'gs://bucket/some/folder'
  with staging.staged(address) as folder:
    folder = pathlib.Path(folder)
    (folder / 'deep/er').mkdir(parents=True)
    (folder / 'deep/er/a').write_text('1')
    (folder / 'b').write_text('2')
    (folder / 'draft.tmp').write_text('3')
  assert not folder.exists()
  assert (there / 'deep/er/a').read_text() == '1'
  assert not (there / 'draft.tmp').exists() and not (there / '.probe').exists()
  with pytest.raises(ZeroDivisionError), staging.staged(address) as folder:
    folder = pathlib.Path(folder)
    assert (folder / 'b').read_text() == '2'
    with (folder / 'b').open('a') as file:
      file.write('2')
    shutil.rmtree(folder / 'deep')
    raise ZeroDivisionError
  assert (there / 'b').read_text() == '22'
  assert not (there / 'deep/er/a').exists()


def test_the_probe_of_another_process_may_be_gone(bucket, monkeypatch):
  """A pod's first process writes and removes it while others look."""
  system = type(staging.fsspec.core.url_to_fs('gs://bucket/probed')[0])
  find = system.find
  monkeypatch.setattr(
    system, 'find', lambda self, place: [*find(self, place), f'{place}/.probe']
  )
  with staging.staged('gs://bucket/probed') as folder:
    pathlib.Path(folder, 'kept').touch()
  with staging.staged('gs://bucket/probed') as folder:
    assert pathlib.Path(folder, 'kept').exists()


def test_a_bucket_that_cannot_be_written(bucket, monkeypatch):
  with pytest.raises(UserError, match='--workdir=.gs://forbidden/x.*Forbidden'):
    with staging.staged('gs://forbidden/x'):
      pass
  monkeypatch.setattr(
    staging._Copy, '_update', lambda self: (_ for _ in ()).throw(OSError('no'))
  )
  with pytest.raises(UserError, match='could not be copied to gs://bucket/y'):
    with staging.staged('gs://bucket/y') as folder:
      pathlib.Path(folder, 'kept').touch()
  assert pathlib.Path(folder, 'kept').exists()
