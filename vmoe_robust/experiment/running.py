"""Parts run as child processes, so that none can end the others."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from vmoe_robust.cost.energy import Meter
from vmoe_robust.experiment import states as states_lib
from vmoe_robust.experiment import usage as usage_lib
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import State
from vmoe_robust.experiment.usage import Usage, ended, peak_bytes
from vmoe_robust.files import write_json

# Seconds between two looks at the processes.
_LOOK = 0.1
# And between two readings of the machine's energy, at most.
_METER = 60
_SIGNALS = {number.value: number.name for number in signal.Signals}
# Of a log, what is read to find its last line.
_TAIL = 20_000


def hand_over(part: Part) -> None:
  """Before a part runs otherwise than by a `Runner`, which looks after it.

  No earlier failure is told of it meanwhile, and no part of what it took as if
  it were all.
  """
  part.folder.mkdir(parents=True, exist_ok=True)
  (part.folder / states_lib.FAILURE).unlink(missing_ok=True)
  usage_lib.forget(part)


@dataclasses.dataclass
class _Child:
  part: Part
  process: subprocess.Popen
  cpus: frozenset[int]
  start: float  # of the clock
  joules: float | None  # of the machine's meter at its start
  offset: int  # of its log, where this process began to write
  peak_bytes: int = 0


class Runner:
  """Runs parts, at most so many at a time, each on CPUs of its own."""

  def __init__(
    self,
    parts: Sequence[Part],
    states: Mapping[str, State],
    jobs: int,
    say: Callable[[str], None],
    on_change: Callable[[], None] = lambda: None,
  ):
    """Starts nothing yet.

    Args:
      parts: to be run, those that others need first.
      states: of all parts of the experiment, by name; kept up to date.
      jobs: how many run at a time.
      say: shows a line.
      on_change: called after each part's end.
    """
    self.states = dict(states)
    # Of several parts at a time nobody knows which took what.
    self._meter = Meter() if jobs == 1 else None
    self._metered = time.monotonic()
    self.stopped = 0  # the signal that asked to stop
    self._parts, self._say, self._on_change = parts, say, on_change
    self._free = shares(jobs)
    self._children: list[_Child] = []

  def run(self) -> None:
    """Runs all that can be run; after Ctrl-C or SIGTERM, what is begun stops.

    A second signal kills it.
    """
    waiting = [
      part
      for part in self._parts
      if self.states[part.name].name
      not in (states_lib.FINISHED, states_lib.CHANGED)
    ]
    with self._forwarding():
      try:
        while (waiting and not self.stopped) or self._children:
          if not self.stopped:
            waiting = self._start(waiting)
          time.sleep(_LOOK)
          self._collect()
      except BaseException:  # nobody would look after them any more
        for child in self._children:
          child.process.send_signal(signal.SIGINT)
        for child in self._children:
          child.process.wait()  # it saves
        raise

  def _collect(self) -> None:
    for child in list(self._children):
      child.peak_bytes = max(child.peak_bytes, peak_bytes(child.process.pid))
      cpu_seconds = ended(child.process)
      if cpu_seconds is not None:
        self._children.remove(child)
        self._end(child, cpu_seconds)

    if time.monotonic() > self._metered + _METER:
      self._joules()

  def _joules(self) -> float | None:
    """The meter of the machine, now."""
    self._metered = time.monotonic()
    if self._meter is None:
      return None
    self._meter.update()
    return self._meter.joules

  def _start(self, waiting: Sequence[Part]) -> list[Part]:
    """Starts what can be; returns what still waits."""
    pending = {part.name for part in waiting}
    pending |= {child.part.name for child in self._children}
    left = []
    for part in waiting:
      needed = self.states.get(part.needs)
      if part.needs in pending or not self._free or self.stopped:
        left.append(part)
      elif needed and needed.name != states_lib.FINISHED:
        self.states[part.name] = states_lib.waiting(part)
      else:
        self._start_one(part)
    return left

  def _start_one(self, part: Part) -> None:
    state = states_lib.look(part)
    self.states[part.name] = state
    if state.name in (states_lib.FINISHED, states_lib.CHANGED):
      return  # of a part whose training had to be looked at first
    share = self._free.pop()
    try:
      child = self._child(part, share)
    except OSError as error:  # a full disk, or a file where a folder should be
      self._free.append(share)
      self.states[part.name] = State(states_lib.FAILED, str(error))
      self._say(f'{_name(part)}: failed: {error}')
      return
    self._children.append(child)
    if self.stopped:  # meanwhile
      child.process.send_signal(signal.SIGINT)

  def _child(self, part: Part, cpus: frozenset[int]) -> _Child:
    part.folder.mkdir(parents=True, exist_ok=True)
    (part.folder / states_lib.FAILURE).unlink(missing_ok=True)
    log = part.folder / states_lib.LOG
    self._say(f'{_name(part)}: started, its output is in {log}')
    with log.open('ab') as file, on_cpus(cpus):
      offset = file.tell()
      process = subprocess.Popen(
        part.command(),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the terminal's Ctrl-C comes by way of us
      )
    return _Child(part, process, cpus, time.monotonic(), self._joules(), offset)

  def _end(self, child: _Child, cpu_seconds: float) -> None:
    part, seconds = child.part, time.monotonic() - child.start
    self._free.append(child.cpus)
    after = self._joules()
    known = child.joules is not None and after is not None
    usage = Usage(
      seconds,
      cpu_seconds,
      child.peak_bytes,
      after - child.joules if known else None,
    )
    with contextlib.suppress(OSError):  # the part's own files are what counts
      usage_lib.add(part, usage)
    state = states_lib.look(part)
    if state.name != states_lib.FINISHED and not self.stopped:
      log = part.folder / states_lib.LOG
      error = f'{_last_line(child, log).removeprefix("error: ")} (log: {log})'
      state = State(states_lib.FAILED, error)
      failure = {'error': error, 'exit_code': child.process.returncode}
      with contextlib.suppress(OSError):  # it is said below in any case
        write_json(part.folder / states_lib.FAILURE, failure)
    self.states[part.name] = state
    detail = f': {state.detail}' if state.detail else ''
    self._say(f'{_name(part)}: {state.name} after {seconds:.0f} s{detail}')
    self._on_change()

  @contextlib.contextmanager
  def _forwarding(self) -> Iterator[None]:
    """Hands signals on to the processes while the block runs."""

    def stop(number, _):
      # A run may have had SIGTERM from a scheduler already, of which a second
      # one would kill it; of SIGINT it takes the first as a wish to save.
      sent = signal.SIGKILL if self.stopped else signal.SIGINT
      self.stopped = number
      for child in self._children:
        with contextlib.suppress(ProcessLookupError):
          child.process.send_signal(sent)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A terminal that closes; under nohup that is ignored.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def cpus() -> list[int]:
  """The CPUs that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # on Linux
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def shares(jobs: int) -> list[frozenset[int]]:
  """The CPUs in as many parts of nearly equal size; `jobs` at most as many.

  Neighbours, which share caches, stay together.
  """
  every = cpus()
  ends = [len(every) * i // jobs for i in range(jobs + 1)]
  return [
    frozenset(every[low:high])
    for low, high in zip(ends[:-1], ends[1:], strict=True)
  ]


@contextlib.contextmanager
def on_cpus(wanted: frozenset[int]) -> Iterator[None]:
  """Processes that are started in the block use these CPUs alone.

  XLA starts as many threads as the process has CPUs.
  """
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, wanted)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _name(part: Part) -> str:
  return f'{part.number} {part.name}'


def _last_line(child: _Child, log) -> str:
  """What a process that failed said last, or how it ended.

  Its own error comes first: libraries may print theirs while it ends.
  """
  code = child.process.returncode
  if code < 0:
    return f'it was ended by {_SIGNALS.get(-code, f"signal {-code}")}'
  with log.open('rb') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(child.offset, size - _TAIL))
    text = file.read().decode(errors='replace')
  lines = [line.strip() for line in re.split(r'[\r\n]+', text) if line.strip()]
  own = [line for line in lines if line.startswith('error: ')]
  last = (own or lines)[-1:]
  return last[0] if last else f'it ended with exit code {code}'
