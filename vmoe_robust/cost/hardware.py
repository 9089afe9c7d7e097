"""What a chip can do at most, where it is known."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

GIB = 2**30
Place = tuple[int, ...]  # coordinates in the torus of a slice


@dataclasses.dataclass(frozen=True)
class Chip:
  """Limits of one chip; None where they are not known."""

  peak: float  # dense bfloat16 FLOP/s
  hbm: float | None = None  # bytes that a program may use
  bandwidth: float | None = None  # bytes/s between chip and HBM
  links: float | None = None  # bytes/s sent to neighbours, over all links
  network: float | None = None  # bytes/s sent to other slices


# By the start of `device_kind`; the first that fits counts.
#
# TPUs: https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. Of HBM, what
# the compiler (libtpu 0.0.42) calls available, a little less than is built in.
# Links: half of the "bidirectional" figure; of v4, six links of 50 GB/s
# (arXiv:2304.01433). Network: of a pod or chip, divided by chips; that of v4 is
# not published, and taken to be that of v5p.
_V4 = Chip(275e12, 30.75 * GIB, 1200e9, 300e9, 6.25e9)
_V5E = Chip(197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9)
_V5P = Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 6.25e9)
_V6E = Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 12.5e9)
_CHIPS = {
  'TPU v4 lite': Chip(138e12),
  'TPU v4': _V4,
  'TPU v5 lite': _V5E,
  'TPU v5e': _V5E,
  'TPU v5p': _V5P,
  'TPU v5': _V5P,
  'TPU v6 lite': _V6E,
  'TPU v6e': _V6E,
  'NVIDIA A100': Chip(312e12),
  'NVIDIA H100 PCIe': Chip(756e12),
  'NVIDIA H100 NVL': Chip(835e12),
  'NVIDIA H100': Chip(989e12),
  'NVIDIA H200 NVL': Chip(835e12),
  'NVIDIA H200': Chip(989e12),
}


def chip(device_kind: str) -> Chip | None:
  """The limits of a device, None where they are not known."""
  if ' MIG ' in device_kind:  # a part of a card, of which the name says little
    return None
  for name, found in _CHIPS.items():
    if device_kind.startswith(name):
      return found
  return None


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of one device, None where it is not known."""
  found = chip(device_kind)
  return found.peak if found else None


def hops(group: Sequence[Place], slice_: Sequence[Place]) -> float:
  """Links between two chips of a group, in the mean over all pairs.

  An axis of the torus is closed to a ring where it is 16 chips long, or of
  v4 and v5p a multiple of 4 (the pages above).

  Args:
    group: where the chips are that exchange data, each with each.
    slice_: where all chips of their slice are.
  """
  places, sizes = np.array(group), np.max(slice_, axis=0) + 1
  unit, total = 4 if sizes[2] > 1 else 16, 0
  for axis, size in enumerate(sizes):
    apart = np.abs(places[:, None, axis] - places[None, :, axis])
    if size % unit == 0:
      apart = np.minimum(apart, size - apart)
    total += apart.sum()
  return float(total) / max(math.perm(len(group), 2), 1)
