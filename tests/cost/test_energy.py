"""Energy from the counters of a machine made of files."""

import sys
import types

import pytest

from vmoe_robust.cost import energy


@pytest.fixture
def machine(tmp_path):
  """Processors with their parts, and a platform of all of them; no GPU."""

  def is_at(*values):
    zones = {f'intel-rapl:{len(values)}': ('psys', sum(values))}
    for i, value in enumerate(values):
      zones[f'intel-rapl:{i}'] = (f'package-{i}', value)
      zones[f'intel-rapl:{i}:0'] = ('core', value)
    for zone, (name, value) in zones.items():
      folder = tmp_path / zone
      folder.mkdir(exist_ok=True)
      (folder / 'name').write_text(f'{name}\n')
      (folder / 'energy_uj').write_text(f'{value}\n')
      (folder / 'max_energy_range_uj').write_text('10000000\n')
    return tmp_path

  return is_at


def test_whole_processors_are_added(machine, tmp_path):
  meter = energy.Meter(machine(1_000_000, 2_000_000), tmp_path)
  assert meter.joules == 0
  machine(1_500_000, 5_000_000)
  meter.update()
  assert meter.joules == 3.5


def test_a_counter_that_begins_again(machine, tmp_path):
  meter = energy.Meter(machine(9_000_000), tmp_path)
  for value in (1_000_000, 500_000):
    machine(value)
    meter.update()
  assert meter.joules == pytest.approx(2 + 9.5)


def test_what_cannot_be_read_is_not_known(machine, tmp_path):
  assert energy.Meter(tmp_path / 'none', tmp_path).joules is None
  meter = energy.Meter(machine(1_000_000, 2_000_000), tmp_path)
  (tmp_path / 'intel-rapl:1/energy_uj').unlink()
  meter.update()
  assert meter.joules is None


@pytest.mark.parametrize('device', ['nvidia0', 'accel0', 'vfio/0'])
def test_a_part_of_the_machine_is_not_the_whole(machine, tmp_path, device):
  """An accelerator of which nothing is read may take most of the energy."""
  dev = tmp_path / 'dev'
  meter = lambda: energy.Meter(machine(1_000_000), dev)
  assert meter().joules == 0
  (dev / device).parent.mkdir(parents=True, exist_ok=True)
  (dev / device).touch()
  assert meter().joules is None


def test_gpus_without_processors_are_not_the_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(energy, '_gpus', lambda dev: {'gpu:0': 5.0})
  assert energy.Meter(tmp_path, tmp_path).joules is None


def test_one_gpu_that_does_not_tell(machine, tmp_path, monkeypatch):
  class Refused(Exception):
    pass

  def energy_of(handle):
    if handle:
      raise Refused
    return 5000.0

  nvml = types.SimpleNamespace(
    NVMLError=Refused, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2,
    nvmlDeviceGetHandleByIndex=lambda i: i,
    nvmlDeviceGetTotalEnergyConsumption=energy_of,
  )  # fmt: skip
  monkeypatch.setitem(sys.modules, 'pynvml', nvml)
  (tmp_path / 'nvidia0').touch()
  assert energy._gpus(tmp_path) is None
  nvml.nvmlDeviceGetCount = lambda: 1
  assert energy._gpus(tmp_path) == {'gpu:0': 5.0}
