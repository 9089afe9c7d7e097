"""What the processes of a part took: time, memory, energy."""

import dataclasses
import os
import re
import subprocess


@dataclasses.dataclass
class Usage:
  """What the processes of a part took, all attempts together."""

  seconds: float = 0.0  # by the clock
  cpu_seconds: float = 0.0  # of all CPUs
  peak_bytes: int = 0  # of memory, beside that of devices; 0: not known
  joules: float | None = None  # of the whole machine; None: not known

  def add(self, other: 'Usage') -> None:
    """Adds what another attempt took."""
    if not self.seconds:
      self.joules = other.joules
    elif self.joules is not None and other.joules is not None:
      self.joules += other.joules
    else:
      self.joules = None
    self.seconds += other.seconds
    self.cpu_seconds += other.cpu_seconds
    self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def ended(process: subprocess.Popen) -> float | None:
  """CPU-seconds of a process that has ended, and of those it waited for."""
  pid, status, used = os.wait4(process.pid, os.WNOHANG)
  if not pid:
    return None
  process.returncode = os.waitstatus_to_exitcode(status)  # for Popen
  return used.ru_utime + used.ru_stime


def peak_bytes(pid: int) -> int:
  """The most memory that a process had so far; 0 where that is not known.

  Not what `wait4` says, which has the memory of this process too: that of the
  moment at which it started the other one.
  """
  try:
    with open(f'/proc/{pid}/status') as file:  # on Linux
      found = re.search(r'VmHWM:\s+(\d+) kB', file.read())
  except OSError:
    return 0
  return 1024 * int(found[1]) if found else 0
