"""Energy that this machine's processors and GPUs took, where it can be read."""

import contextlib
import pathlib

_POWERCAP = pathlib.Path('/sys/class/powercap')  # Linux, often root's alone


class Meter:
  """The energy of the whole machine since it was made."""

  def __init__(self, powercap: pathlib.Path = _POWERCAP):
    """Reads the counters for the first time.

    Args:
      powercap: where Linux has those of Intel's and AMD's processors (RAPL);
        those of NVIDIA's GPUs need the package nvidia-ml-py.
    """
    self._powercap = powercap
    self._last = self._counters()
    self.joules = 0.0 if self._last else None  # None: they cannot be read

  def update(self) -> None:
    """Adds what was used since the last call, a minute ago at most.

    A processor's counter begins again at its end, at full load after half an
    hour.
    """
    now = self._counters()
    if self.joules is None or set(now) != set(self._last):
      self.joules = None
      return
    for name, value in now.items():
      used = value - self._last[name]
      if used < 0:
        end = _read(self._powercap / name / 'max_energy_range_uj')
        used += end or 0
      if used < 0:
        self.joules = None
        return
      self.joules += used
    self._last = now

  def _counters(self) -> dict[str, float]:
    """In joules, by device."""
    return _processors(self._powercap) | _gpus()


def _processors(powercap: pathlib.Path) -> dict[str, float]:
  found = {}
  for folder in sorted(powercap.glob('*-rapl:*')):
    if _name(folder).startswith('package'):  # not a part of one, nor the
      # platform ('psys'), which has processors in it
      value = _read(folder / 'energy_uj')
      if value is not None:
        found[folder.name] = value
  return found


def _name(folder: pathlib.Path) -> str:
  try:
    return (folder / 'name').read_text()
  except OSError:
    return ''


def _read(path: pathlib.Path) -> float | None:
  try:
    return int(path.read_text()) / 1e6
  except (OSError, ValueError):
    return None


def _gpus() -> dict[str, float]:
  try:
    import pynvml
  except ImportError:
    return {}
  found = {}
  with contextlib.suppress(pynvml.NVMLError):  # no driver, or an old GPU
    pynvml.nvmlInit()
    for i in range(pynvml.nvmlDeviceGetCount()):
      handle = pynvml.nvmlDeviceGetHandleByIndex(i)
      used = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
      found[f'gpu:{i}'] = used / 1e3  # it counts in millijoules
  return found
