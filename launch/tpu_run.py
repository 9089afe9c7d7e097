"""The life of a run on a Cloud TPU pod, through preemptions."""

import argparse
import contextlib
import dataclasses
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import commands
from commands import CommandError, fail, say
from tpu_pod import Pod

ROOT = Path(__file__).resolve().parents[1]
# Seconds between two looks at a pod.
POLL = 30
# For how many looks a run that failed may turn out to have failed because its
# machines were taken away.
GRACE = 6
# How often in a row, each time within so many seconds, a pod may be lost.
LOST, SOON = 10, 600
_ON_THE_WAY = (
  *('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING'),
  *('SUSPENDING', 'DELETING'),
)
# Of launch/worker.sh: stopped in order, to be resumed.
_STOPPED = 'exit 80'


@dataclasses.dataclass
class Run:
  """A run on a pod, as the flags of launch/tpu.py describe it."""

  pod: Pod
  flags: argparse.Namespace
  shell: commands.Shell

  def up(self) -> None:
    """Creates the pod if there is none, and sees the run through."""
    if self.state()[0] == 'MISSING':
      self.create()
    self.keep(retry=True)

  def watch(self) -> None:
    """Sees a run through whose pod was created before."""
    if self.state()[0] == 'MISSING':
      fail(self.pod.meaning('NOT_FOUND'))
    self.keep(retry=False)

  def keep(self, retry: bool) -> None:
    """Installs, starts and follows the run to its end, through preemptions.

    Args:
      retry: whether a run that failed before is started again.
    """
    lost = failed = 0
    while True:
      began = time.monotonic()
      try:
        state, why = self.settle()
        if state != 'ACTIVE':
          self._recreate(state, why)
          continue
        status = self.status()
        if status == 'exit 0':
          break
        if status == 'absent':
          self.install()
          self._start()
        elif status == 'running':
          self.shell.show(self.pod.log())
          lost, failed, retry = 0, 0, False
        elif status == 'other':
          fail(f'{self.pod.name} is busy with another run; `log` follows it')
        elif status == _STOPPED or retry:
          retry = False
          self._restart()
        else:
          failed += 1
          self._doubt(status, failed)
      except CommandError as error:
        # Most often the machines are being taken away; the state will tell.
        lost = 1 if time.monotonic() - began > SOON else lost + 1
        if lost > LOST:
          raise
        say(f'lost sight of {self.pod.name}: {error.reason()}')
        time.sleep(POLL)
    say(
      f'finished; results are in {self.flags.workdir}; `delete` ends the cost'
    )

  def state(self) -> tuple[str, str]:
    """Of the pod, 'MISSING' if there is none, and the reason."""
    try:
      answer = json.loads(self.shell.ask(self.pod.describe()))
    except CommandError as error:
      if self.pod.is_missing(error.stderr):
        return 'MISSING', ''
      raise
    state = answer.get('state', {})
    why = state.get('failedData', {}).get('error', {}).get('message', '')
    return state.get('state', ''), why or state.get('stateInitiator', '')

  def settle(self) -> tuple[str, str]:
    """Waits until the pod is there, gone or refused."""
    told = None
    while True:
      state, why = self.state()
      if state not in _ON_THE_WAY:
        return state, why
      if state != told:
        say(f'{self.pod.name} is {state}')
      told = state
      time.sleep(POLL)

  def create(self) -> None:
    """Asks for the pod."""
    flags = self.flags
    command = self.pod.create(
      flags.type, flags.runtime, flags.slices, flags.spot
    )
    say(f'asking for {flags.slices} x {flags.type} in {flags.zone}')
    self.shell.show(command)

  def install(self) -> None:
    """Brings the working tree to all workers."""
    say('installing on all workers')
    # In a dry run, a folder that is there when the command is pasted.
    dry = self.flags.dry_run
    place = contextlib.nullcontext('/tmp') if dry else TemporaryDirectory()
    with place as folder:
      archive = str(Path(folder, 'tree.tar.gz'))
      for command in self.pod.install(ROOT, archive, self.flags.share):
        self.shell.show(command)

  def start(self) -> None:
    """Starts the run, unless the pod is busy."""
    if self.status() in ('running', 'other'):
      fail(f'{self.pod.name} is running already; `log` follows it')
    self._start()

  def status(self) -> str:
    """What the first worker says of this run."""
    command = self.pod.status(self.flags.workdir, self.flags.arguments)
    return self.shell.ask(command).strip()

  def log(self) -> None:
    """Follows the first process, or shows the errors of all."""
    errors = self.flags.errors
    self.shell.show(self.pod.errors() if errors else self.pod.log())

  def delete(self) -> None:
    """Gives the pod back."""
    self.shell.show(self.pod.delete())

  def _start(self):
    say(f'starting; logs are in {self.flags.workdir}/logs')
    self.shell.show(self.pod.start(self.flags.workdir, self.flags.arguments))

  def _restart(self):
    time.sleep(POLL)  # it may have stopped because the machines go
    if self.state()[0] == 'ACTIVE':
      self.install()  # they may have booted, and lost the shared folder
      self._start()

  def _doubt(self, status: str, failed: int):
    if failed > GRACE:
      fail(
        f'the run ended with {status}; `log --errors` says why, `up` starts '
        'it again'
      )
    time.sleep(POLL)

  def _recreate(self, state: str, why: str):
    """Asks for a pod again that is gone, unless nobody should."""
    name = self.pod.name
    if state == 'FAILED' and not self.pod.is_full(why):
      meaning = self.pod.meaning(why, self.flags.type)
      fail(f'{meaning}; then `delete` {name} ({why})')
    if state == 'SUSPENDED' and why == 'USER':
      fail(f'{name} was suspended by a user; `delete` it, then `up`')
    if state not in ('FAILED', 'SUSPENDED', 'MISSING'):
      fail(f'{name} is in state {state!r}, which is unknown')
    if state == 'FAILED':
      say(f'no room for {name}; asking again: {why}')
      time.sleep(POLL)
    else:
      say(f'{name} was taken away')
    if state != 'MISSING':
      self.delete()
    self.create()
