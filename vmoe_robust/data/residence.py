"""Whether a training split is kept on the devices."""

import os

import jax
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Source

# Of the memory of a device, or of the host, which has to decode the split.
SHARE = 0.25


def on_devices(
  data: ConfigDict, source: Source, memory: float | None = None
) -> bool:
  """Whether `config.data.resident`, or what it leaves open, keeps the split.

  Args:
    data: `config.data`.
    source: the training split.
    memory: bytes of which the split may take `SHARE`; None: see `room`.

  Raises:
    UserError: `config.data.resident=True` cannot be.
  """
  if data.resident is False:
    return False
  reason = why_not(data, source, room() if memory is None else memory)
  if data.resident and reason:
    raise UserError(
      f'config.data.resident=True cannot be: {reason}; leave it out, and '
      'batches come from the host'
    )
  return not reason


def why_not(data: ConfigDict, source: Source, memory: float) -> str:
  """Why a split cannot be kept on the devices; '' if it can.

  Args:
    data: `config.data`.
    source: the training split.
    memory: bytes of which the split may take `SHARE`.
  """
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
  wanted = size(data, source)
  if wanted > SHARE * memory:
    return (
      f'the {len(source):,} decoded images of config.data.split='
      f'{data.split!r} are {wanted / 2**30:,.2f} GiB, more than {SHARE:.0%} of '
      f'the {memory / 2**30:,.2f} GiB of memory that a device has'
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
  try:
    with open('/proc/meminfo') as lines:
      fields = dict(line.split(':') for line in lines)
    return int(fields['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):  # no Linux
    pages = os.sysconf('SC_PHYS_PAGES')
    return pages * os.sysconf('SC_PAGE_SIZE')
