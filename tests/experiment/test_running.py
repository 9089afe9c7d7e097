"""Children: what fails, waits, is stopped, and on which CPUs they run."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.experiment import running, states, usage
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import State
from vmoe_robust.experiment.usage import Usage

FINISH = 'pathlib.Path("done").touch()'


@dataclasses.dataclass(frozen=True)
class Scripted(Part):
  """A part that runs a line of Python in its folder."""

  script: str = FINISH

  def command(self):
    code = f'import os, pathlib, sys, time; os.chdir({str(self.folder)!r}); '
    return [sys.executable, '-IS', '-c', code + self.script]


@pytest.fixture(autouse=True)
def done_files(monkeypatch):
  """A part is finished when its script has left a file."""

  def look(part, needed=None):
    done = (part.folder / 'done').exists()
    return State(states.FINISHED if done else states.NOT_STARTED)

  monkeypatch.setattr(states, 'look', look)


@pytest.fixture
def part(tmp_path):
  made = []

  def make(name, script=FINISH, needs=None):
    made.append(name)
    return Scripted(
      len(made),
      name,
      'train',
      name,
      '',
      0,
      '',
      config_lib.default(),
      tmp_path / name,
      needs,
      0,
      script,
    )

  return make


def run(parts, jobs=1, before=None):
  lines, found = [], {part.name: State(states.NOT_STARTED) for part in parts}
  runner = running.Runner(parts, found | (before or {}), jobs, lines.append)
  runner.run()
  return {name: state.name for name, state in runner.states.items()}, runner


def test_what_fails_is_named_and_ends_nothing_else(part):
  parts = [
    part(
      'bad', 'print("first"); print("error: no room", end="\\r"); sys.exit(3)'
    ),
    part('killed', 'os.kill(os.getpid(), 9)'),
    part('good'),
    part('of_bad', needs='bad'),
    part('of_of_bad', needs='of_bad'),
    part('of_good', needs='good'),
  ]
  found, runner = run(parts)
  assert found == {
    'bad': 'failed',
    'killed': 'failed',
    'good': 'finished',
    'of_bad': 'waiting',
    'of_of_bad': 'waiting',
    'of_good': 'finished',
  }
  log = parts[0].folder / 'log.txt'
  assert runner.states['bad'].detail == f'no room (log: {log})'
  assert 'SIGKILL' in runner.states['killed'].detail
  assert 'bad' in runner.states['of_bad'].detail
  failure = json.loads((parts[0].folder / 'failed.json').read_text())
  assert failure['exit_code'] == 3


def test_what_failed_is_tried_again_and_what_needs_it_waits_for_that(part):
  parts = [part('first'), part('second', needs='first')]
  parts[0].folder.mkdir()
  (parts[0].folder / 'failed.json').write_text('{"error": "x"}')
  before = {
    'first': State(states.FAILED, 'x'),
    'second': State(states.WAITING, 'y'),
  }
  found, _ = run(parts, before=before)
  assert set(found.values()) == {'finished'}
  assert not (parts[0].folder / 'failed.json').exists()


def test_what_changed_is_left_alone_and_finished_is_not_run(part):
  parts = [part('changed'), part('done', 'sys.exit(1)')]
  before = {'changed': State('changed', 'x'), 'done': State('finished')}
  found, _ = run(parts, before=before)
  assert found == {'changed': 'changed', 'done': 'finished'}
  assert not parts[0].folder.exists()


def test_an_end_without_results_is_a_failure(part):
  found, runner = run([part('odd', 'print("stopped at step 3")')])
  assert found == {'odd': 'failed'}
  assert runner.states['odd'].detail.startswith('stopped at step 3 (log: ')


def test_the_cause_is_the_run_s_own_error(part):
  said = (
    'print("error: the disk is full\\nValueError: of a library");sys.exit(1)'
  )
  found, runner = run([part('full', said)])
  assert found == {'full': 'failed'}
  assert runner.states['full'].detail.startswith('the disk is full (log: ')


def test_jobs_run_at_a_time_on_cpus_of_their_own(part, monkeypatch):
  every = running.cpus()
  if len(every) < 2:
    pytest.skip('one CPU')
  meet = (
    'pathlib.Path("cpus").write_text(repr(os.sched_getaffinity(0)));'
    'end = time.monotonic() + 60\n'
    'while not pathlib.Path("../{other}/cpus").exists():\n'
    '  assert time.monotonic() < end; time.sleep(.01)\n' + FINISH
  )
  parts = [part('a', meet.format(other='b')), part('b', meet.format(other='a'))]
  found, _ = run(parts, jobs=2)
  assert set(found.values()) == {'finished'}
  used = [eval((p.folder / 'cpus').read_text()) for p in parts]  # noqa: S307
  assert not used[0] & used[1] and used[0] | used[1] == set(every)
  assert running.cpus() == every


def test_shares_of_cpus(monkeypatch):
  monkeypatch.setattr(running, 'cpus', lambda: [0, 1, 2, 5, 7])
  assert [sorted(s) for s in running.shares(2)] == [[0, 1], [2, 5, 7]]
  assert [sorted(s) for s in running.shares(5)] == [[0], [1], [2], [5], [7]]


def signalled(folder, number):
  """Sends a signal to this process once a part has started."""

  def send():
    end = time.monotonic() + 60
    while not (folder / 'ready').exists() and time.monotonic() < end:
      time.sleep(0.01)
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=send)
  thread.start()
  return thread


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_nothing_more_starts(part, number):
  saves = (
    'import signal; '
    'signal.signal(signal.SIGINT, lambda *_: sys.exit(print("saved")));'
    'pathlib.Path("ready").touch(); time.sleep(60)'
  )
  parts = [part('long', saves), part('next')]
  before = signal.getsignal(number)
  thread = signalled(parts[0].folder, number)
  found, runner = run(parts)
  thread.join()
  assert runner.stopped == number and signal.getsignal(number) == before
  assert set(found.values()) == {'not started'}  # and not failed
  assert (parts[0].folder / 'log.txt').read_text() == 'saved\n'
  assert not parts[1].folder.exists()


def test_a_second_signal_kills(part):
  stubborn = (
    'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);'
    'pathlib.Path("ready").touch(); time.sleep(60)'
  )
  parts = [part('stubborn', stubborn)]
  start = time.monotonic()
  thread = signalled(parts[0].folder, signal.SIGTERM)

  def again():
    thread.join()
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)

  second = threading.Thread(target=again)
  second.start()
  run(parts)
  second.join()
  assert time.monotonic() - start < 30


def test_a_folder_that_is_no_folder_fails_alone(part, tmp_path):
  (tmp_path / 'bad').write_text('')
  found, _ = run([part('bad'), part('good')])
  assert found == {'bad': 'failed', 'good': 'finished'}


def test_an_error_of_our_own_leaves_no_process_alone(part):
  if len(running.cpus()) < 2:
    pytest.skip('one CPU')
  saves = (
    'import signal; '
    'signal.signal(signal.SIGINT, lambda *_: sys.exit(print("saved")));'
    'pathlib.Path("ready").touch(); time.sleep(60)'
  )
  waits = (
    'end = time.monotonic() + 60\n'
    'while not pathlib.Path("../long/ready").exists():\n'
    '  assert time.monotonic() < end; time.sleep(.01)\n' + FINISH
  )
  parts = [part('long', saves), part('short', waits)]
  found = {p.name: State(states.NOT_STARTED) for p in parts}

  def broken():
    raise RuntimeError('of the summary')

  runner = running.Runner(parts, found, 2, lambda line: None, broken)
  with pytest.raises(RuntimeError, match='of the summary'):
    runner.run()
  end = time.monotonic() + 30
  log = parts[0].folder / 'log.txt'
  while log.read_text() != 'saved\n' and time.monotonic() < end:
    time.sleep(0.01)
  assert log.read_text() == 'saved\n'


def test_usage_is_that_of_the_process(part):
  """One is busy, one sleeps, and one takes memory."""
  spend = 'while time.process_time() < 1: pass\n'
  parts = [
    part('busy', f'\n{spend}{FINISH}'),
    part('asleep', 'time.sleep(1); ' + FINISH),
    part('large', 'x = bytearray(200_000_000); time.sleep(0.5); ' + FINISH),
  ]
  run(parts)
  busy, asleep, large = (usage.of(one) for one in parts)
  assert busy.cpu_seconds >= 1 > asleep.cpu_seconds
  assert asleep.seconds >= 1
  assert large.peak_bytes > 200e6 > 10 * asleep.peak_bytes > 1e6


def test_usage_of_several_attempts_adds_up(part):
  one = part('one', '')
  one.folder.mkdir(parents=True)
  assert usage.of(one) is None
  usage.add(one, Usage(1.0, 2.0, 30, 4.0))
  usage.add(one, Usage(1.0, 2.0, 20, 4.0))
  assert usage.of(one) == Usage(2.0, 4.0, 30, 8.0)
  usage.add(one, Usage(1.0, 2.0, 20, None))
  assert usage.of(one) == Usage(3.0, 6.0, 30, None)
  usage.add(one, Usage(1.0, 2.0, 20, 4.0))
  assert usage.of(one).joules is None


@pytest.mark.parametrize(
  'text',
  [
    *('', '[1]', '{"seconds": 1, "years": 2}'),
    '{"seconds": "12", "cpu_seconds": null}',
  ],
)
def test_usage_that_is_damaged_stays_unknown(part, text):
  one = part('one', '')
  one.folder.mkdir(parents=True)
  (one.folder / usage.FILE).write_text(text)
  usage.add(one, Usage(1.0, 2.0, 30, 4.0))
  assert usage.of_each([one]) == {}


def test_usage_goes_with_the_folder(part, tmp_path):
  """So that parts that ran elsewhere, or by themselves, are counted."""
  one = part('one', FINISH)
  run([one])
  there = one.folder.rename(tmp_path / 'elsewhere')
  assert usage.of(dataclasses.replace(one, folder=there)).cpu_seconds > 0


def test_of_a_part_that_runs_on_a_cluster_no_old_attempt_is_told(part):
  one = part('one', 'sys.exit(3)')
  run([one])
  failure = one.folder / states.FAILURE
  assert failure.exists() and usage.of(one)
  running.hand_over(one)
  assert not failure.exists() and usage.of(one) is None
  running.hand_over(part('new'))
  usage.add(one, Usage(1.0, 2.0, 30, 4.0))
  assert usage.of(one) is None
