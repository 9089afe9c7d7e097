"""Energy that this machine's processors and GPUs took, where it can be read."""

import pathlib

_POWERCAP = pathlib.Path('/sys/class/powercap')  # Linux, often root's alone
_DEV = pathlib.Path('/dev')


class Meter:
  """The energy of the whole machine since it was made."""

  def __init__(
    self, powercap: pathlib.Path = _POWERCAP, dev: pathlib.Path = _DEV
  ):
    """Reads the counters for the first time.

    Args:
      powercap: where Linux has those of Intel's and AMD's processors (RAPL);
        those of NVIDIA's GPUs need the package nvidia-ml-py.
      dev: where the devices are.
    """
    self._powercap, self._dev = powercap, dev
    self._last = self._counters()
    # None: they cannot be read.
    self.joules = None if self._last is None else 0.0

  def update(self) -> None:
    """Adds what was used since the last call, a minute ago at most.

    A processor's counter begins again at its end, at full load after half an
    hour.
    """
    now = self._counters()
    if self.joules is None or now is None or set(now) != set(self._last):
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

  def _counters(self) -> dict[str, float] | None:
    """In joules, by device; None if some device does not tell.

    Without it the rest would be taken for the whole machine.
    """
    processors, gpus = _processors(self._powercap), _gpus(self._dev)
    if not processors or gpus is None or _has_tpu(self._dev):
      return None
    return processors | gpus


def _processors(powercap: pathlib.Path) -> dict[str, float] | None:
  """None: one of them does not tell; empty: none does."""
  found = {}
  for folder in sorted(powercap.glob('*-rapl:*')):
    if _name(folder).startswith('package'):  # not a part of one, nor the
      # platform ('psys'), which has processors in it
      value = _read(folder / 'energy_uj')
      if value is None:
        return None
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


def _has_tpu(dev: pathlib.Path) -> bool:
  return any(dev.glob('accel[0-9]*')) or any(dev.glob('vfio/[0-9]*'))


def _gpus(dev: pathlib.Path) -> dict[str, float] | None:
  """None: there are GPUs, of which one or all do not tell."""
  if not any(dev.glob('nvidia[0-9]*')):
    return {}
  try:
    import pynvml
  except ImportError:
    return None
  found = {}
  try:
    pynvml.nvmlInit()
    for i in range(pynvml.nvmlDeviceGetCount()):
      handle = pynvml.nvmlDeviceGetHandleByIndex(i)
      used = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
      found[f'gpu:{i}'] = used / 1e3  # it counts in millijoules
  except pynvml.NVMLError:  # an old one
    return None
  return found
