"""Energy from the counters of a machine made of files."""

import pytest

from vmoe_robust.cost import energy


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Processors with their parts, and a platform of all of them; no GPU."""
  monkeypatch.setattr(energy, '_gpus', dict)

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


def test_whole_processors_are_added(machine):
  meter = energy.Meter(machine(1_000_000, 2_000_000))
  assert meter.joules == 0
  machine(1_500_000, 5_000_000)
  meter.update()
  assert meter.joules == 3.5


def test_a_counter_that_begins_again(machine):
  meter = energy.Meter(machine(9_000_000))
  for value in (1_000_000, 500_000):
    machine(value)
    meter.update()
  assert meter.joules == pytest.approx(2 + 9.5)


def test_what_cannot_be_read_is_not_known(machine, tmp_path):
  assert energy.Meter(tmp_path / 'none').joules is None
  meter = energy.Meter(machine(1_000_000, 2_000_000))
  (tmp_path / 'intel-rapl:1/energy_uj').unlink()
  meter.update()
  assert meter.joules is None
