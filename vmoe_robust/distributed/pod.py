"""The processes of a pod begin together and end together.

JAX aborts a pod when one of its processes gives no sign of life. An error that
a process lives to tell it would not notice: the others would wait in a
collective. So who fails tells the others, through JAX's key-value store.
"""

import contextlib
import faulthandler
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from jax._src import distributed  # the store has no public name

from vmoe_robust.config import UserError
from vmoe_robust.errors import SavedAndStopped

# A process that ends because of another exits with this; look at others first.
FOLLOWED = 75
# And all of them with this where one was stopped by a signal.
STOPPED = 130

# Seconds.
_START = 300  # to wait for all processes
_HEARTBEAT = 30  # a process that is silent for so long is dead
_NEWS = 1.0  # how often to look for news
_CLOSING = 30  # files may wait for the other processes, but not longer

_KEY = 'vmoe_robust/failure'
_SIGNAL = 'stopped by a signal'
_ABSENT = (
  f'error: not all processes of the pod came within {_START} s, or process 0 '
  'went away; look at the output of each and start all again'
)
_LOST = (
  'error: this process was killed, or aborted because another process of the '
  'pod died, which the lines above then name; start all again with the same '
  '--workdir to resume from the newest checkpoint'
)


class _Witness:
  """Says the last word for a process that cannot: JAX ends it by abort()."""

  _SCRIPT = (
    'while read -r line; do last=$line; done; '
    '[ -z "$last" ] || printf "%s\\n" "$last" >&2'
  )

  def __init__(self):
    self._shell = subprocess.Popen(
      ['sh', '-c', self._SCRIPT],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
      start_new_session=True,  # out of reach of Ctrl-C
    )

  def will_say(self, line: str):
    with contextlib.suppress(OSError):
      self._shell.stdin.write(line + '\n')
      self._shell.stdin.flush()

  def dismiss(self):
    self.will_say('')
    self._shell.stdin.close()
    self._shell.wait()


_witness: _Witness | None = None
_leaving = threading.Lock()  # taken once, by who ends the process


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Joins the other processes before JAX is used; what ends one, ends all.

  An error inside is printed, told to the others, and ends all of them, even
  from within a collective: this process with exit code 1, the others with
  `FOLLOWED`. A signal that stops one stops all, with `STOPPED`, and the last
  line then begins with 'stopped'. When a process dies silently, JAX aborts the
  others after `_HEARTBEAT` seconds. In each case the last line on the standard
  error stream says what happened.

  `SavedAndStopped`, which all processes raise, leaves in order and goes on up.

  Raises:
    UserError: there is nothing to join.
  """
  global _witness
  _witness = _Witness()
  _witness.will_say(_ABSENT)
  try:
    _join()
  except UserError:
    _witness.dismiss()
    raise
  _witness.will_say(_LOST)
  # JAX aborts from a thread of its own; what the others do says nothing.
  faulthandler.enable(all_threads=False)
  done = threading.Event()
  follower = threading.Thread(target=_follow, args=(done,), daemon=True)
  follower.start()
  try:
    yield
  except SavedAndStopped:
    raise  # in all of them, with nothing left to do
  except BaseException as error:  # signals raise others than Exception
    _fail(error)  # does not return
  finally:
    done.set()
    follower.join()
    jax.distributed.shutdown()  # waits for the others
    _witness.dismiss()


@contextlib.contextmanager
def closing_in_time() -> Iterator[None]:
  """Ends the pod after an error even if closing its files never returns.

  A checkpoint that is being written waits for the other processes.
  """
  try:
    yield
  except BaseException as error:
    if _witness:
      late = threading.Timer(_CLOSING, _fail, (error,))
      late.daemon = True
      late.start()
    raise


def _join():
  """Lets JAX find the other processes.

  It finds its place on a TPU pod, in SLURM and under MPI by itself. Where it
  cannot, the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
  and JAX_PROCESS_ID say.
  """
  count = os.environ.get('JAX_NUM_PROCESSES')
  number = os.environ.get('JAX_PROCESS_ID')
  try:
    jax.distributed.initialize(
      num_processes=int(count) if count else None,
      process_id=int(number) if number else None,
      initialization_timeout=_START,
      heartbeat_timeout_seconds=_HEARTBEAT,
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f'--distributed cannot join the other hosts: {error}; outside of a TPU '
      'pod, SLURM and MPI set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and '
      'JAX_PROCESS_ID'
    ) from error


def _follow(done: threading.Event):
  """Ends this process when another has failed."""
  while not done.wait(_NEWS):
    try:
      news = distributed.global_state.client.key_value_try_get(_KEY)
    except jax.errors.JaxRuntimeError:  # there is none
      continue
    _leaving.acquire()
    if _SIGNAL in news:
      _leave(f'stopped: {news}', STOPPED)
    _leave(f'error: {news}', FOLLOWED)


def _fail(error: BaseException):
  """Prints the error, tells the others and ends this process."""
  text = str(error).strip().split('\n')[0]
  stopped = isinstance(error, KeyboardInterrupt)
  if stopped:
    text = _SIGNAL
  elif not isinstance(error, UserError):
    traceback.print_exception(error)
    text = f'{type(error).__name__}: {text}'
    # A collective that failed may be due to another process; its news come.
    time.sleep(3 * _NEWS)
  _leaving.acquire()
  again = 'start all again with the same --workdir to resume'
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
    distributed.global_state.client.key_value_set(
      _KEY, f'process {_number()} ended the run: {text}; {again}'
    )
  if stopped:
    _leave(f'{text}; {again}', STOPPED)
  if isinstance(error, UserError):
    _leave(f'error: {text}', 1)
  _leave(f'error: {text}; {again}', 1)


def _number() -> int:
  """Of this process; `jax.process_index` would wait for the devices of all."""
  return distributed.global_state.process_id


def _leave(line: str, code: int):
  _witness.will_say(line)  # in case that JAX aborts before this does
  if _number() == 0:
    time.sleep(3 * _NEWS)  # it keeps the news that the others look for
  sys.stdout.flush()
  print(line, file=sys.stderr, flush=True)
  _witness.will_say('')
  os._exit(code)  # whatever other threads wait for
