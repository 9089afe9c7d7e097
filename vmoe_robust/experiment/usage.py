"""What the processes of a part took: time, memory, energy."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterable

from vmoe_robust.experiment.parts import Part
from vmoe_robust.files import write_json

# In a part's folder, so that it goes wherever the folder goes.
FILE = 'usage.json'


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


def of(part: Part) -> Usage | None:
  """What a part took so far, by its folder; None if that is not known."""
  try:
    found = Usage(**json.loads((part.folder / FILE).read_text()))
  except (OSError, ValueError, TypeError):
    return None
  numbers = found.seconds, found.cpu_seconds, found.peak_bytes
  whole = all(isinstance(n, int | float) for n in (*numbers, found.joules or 0))
  return found if whole else None


def of_each(parts: Iterable[Part]) -> dict[str, Usage]:
  """What parts took so far, by name, of those of which it is known."""
  found = {part.name: of(part) for part in parts}
  return {name: usage for name, usage in found.items() if usage}


def add(part: Part, usage: Usage) -> None:
  """Adds what an attempt took to what the part's folder says.

  Raises:
    OSError: it cannot be written.
  """
  total = of(part)
  if total is None:
    if (part.folder / FILE).exists():
      return  # damaged: nobody knows what earlier attempts took
    total = Usage()
  total.add(usage)
  write_json(part.folder / FILE, dataclasses.asdict(total))


def forget(part: Part) -> None:
  """Of a part that goes on where nobody counts, it is not known from now on.

  Raises:
    OSError: it cannot be written.
  """
  write_json(part.folder / FILE, None)


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
