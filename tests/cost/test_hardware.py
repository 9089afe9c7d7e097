"""What chips can do, and how far apart they are."""

import dataclasses
import itertools

import pytest

from vmoe_robust.cost import hardware


def pod(*sizes):
  return list(itertools.product(*map(range, sizes)))


@pytest.mark.parametrize(
  'kind, gib',
  [('TPU v4', 31), ('TPU v5 lite', 16), ('TPU v5', 96), ('TPU v6 lite', 31)],
)
def test_a_tpu_has_all_its_limits(kind, gib):
  chip = hardware.chip(kind)
  assert chip.hbm / hardware.GIB == pytest.approx(gib, abs=0.5)
  assert all(dataclasses.astuple(chip))
  # Each network is slower than the one inside of it.
  assert chip.network < chip.links < chip.bandwidth < chip.peak


def test_other_devices_have_fewer():
  assert hardware.chip('NVIDIA H100 80GB HBM3').links is None
  # A part of a card.
  assert hardware.chip('NVIDIA H100 80GB HBM3 MIG 1g.10gb') is None
  assert hardware.chip('cpu') is None


@pytest.mark.parametrize(
  'group, whole, hops',
  [
    (pod(2, 1, 1), pod(4, 4, 1), 1),
    (pod(4, 1, 1), pod(4, 4, 1), 10 / 6),  # a line
    (pod(16, 1, 1), pod(16, 16, 1), 64 / 15),  # a ring
    (pod(4, 1, 1), pod(4, 4, 4), 4 / 3),
    (pod(4, 4, 1), pod(4, 4, 4), 2 * 16 / 15),
    (pod(1, 1, 1), pod(4, 4, 4), 0),
  ],
)
def test_hops_of_a_torus(group, whole, hops):
  assert hardware.hops(group, whole) == pytest.approx(hops)
