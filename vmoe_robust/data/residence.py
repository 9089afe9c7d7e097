"""Whether a training split is kept on the devices."""

import os
import pathlib

import jax
from absl import logging
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Source
from vmoe_robust.distributed import least

# Of the memory of a device, or of the host, which has to decode the split.
SHARE = 0.25
# Of a container's memory, in versions 2 and 1 of control groups.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def on_devices(
  data: ConfigDict,
  source: Source,
  before: bool | None = None,
  memory: float | None = None,
) -> bool:
  """Whether a training split is kept on the devices; the same on every process.

  Args:
    data: `config.data`.
    source: the training split.
    before: whether it was when the run was interrupted. A run goes on as it
      began, unless `data.resident` says otherwise, because augmentation draws
      differ. None: the run is new.
    memory: bytes of which the split may take `SHARE`; None: see `room`.

  Raises:
    UserError: `config.data.resident=True` cannot be.
  """
  wanted = before if data.resident is None else data.resident
  if wanted is False:
    return False
  memory = least(room()) if memory is None else memory
  reason = why_not(data, source, memory)
  if reason and data.resident:
    raise UserError(
      f'config.data.resident=True cannot be: {reason}; leave it out, and '
      'batches come from the host'
    )
  if reason and before:
    logging.warning(
      'batches now come from the host, with other draws of augmentation than '
      'before, because %s',
      reason,
    )
  return not reason


def why_not(data: ConfigDict, source: Source, memory: float) -> str:
  """Why a split cannot be kept on the devices; '' if it can.

  Args:
    data: `config.data`.
    source: the training split.
    memory: bytes of which the split may take `SHARE`.
  """
  if reason := never(data):
    return reason
  wanted = size(data, source)
  if wanted > SHARE * memory:
    return (
      f'the {len(source):,} decoded images of config.data.split='
      f'{data.split!r} are {wanted / 2**30:,.2f} GiB, more than {SHARE:.0%} of '
      f'the {memory / 2**30:,.2f} GiB of memory that a device has'
    )
  return ''


def never(data: ConfigDict) -> str:
  """Why no split is kept, however small; '' if one can be."""
  if data.crop == 'inception':
    return (
      "config.data.crop='inception' cuts from images as they are stored, not "
      'from those of config.data.image_size that are kept'
    )
  if data.randaugment_layers:
    return (
      f'config.data.randaugment_layers={data.randaugment_layers} is done by '
      'the host alone'
    )
  return ''


def size(data: ConfigDict, source: Source) -> int:
  """Bytes of the decoded images."""
  return len(source) * data.image_size**2 * source.channels


def room() -> float:
  """Bytes of memory for each copy of a split.

  The least of what a device of this process has and of what the host has free,
  which also holds the split for a while. On the CPU every device's copy is in
  the host's memory.
  """
  devices = jax.local_devices()
  free = float(_free_on_host())
  if devices[0].platform == 'cpu':
    return free / len(devices)
  limits = [(d.memory_stats() or {}).get('bytes_limit', 0) for d in devices]
  return min(free, *limits)


def _free_on_host() -> int:
  """Bytes that the system has free, or at most allows to this container."""
  free = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    fields = dict(line.split(':') for line in lines)
    free = int(fields['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    pass  # no Linux
  for path in _LIMITS:
    try:
      free = min(free, int(pathlib.Path(path).read_text()))
    except (OSError, ValueError):
      pass  # there is no such limit, or it is 'max'
  return free
