"""Many steps in one program are the steps one by one."""

import jax
import numpy as np
import pytest

from tests.train.test_loop import TINY, losses, small, train_on
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.data import open_source
from vmoe_robust.train import advance, events

AUGMENTED = {'data.crop': 'pad', 'data.pad': 1, 'data.flip': True}


def opened(run_of, config, shape, resident):
  """A run's state and its steps on the digits, with one kind of data."""
  config.data.resident = resident
  config.model.num_classes = 10
  run = run_of(config, shape)
  source = open_source(config.data, 'train[:50]')
  step = run.step.__wrapped__
  steps = advance.make(step, config, source, run.mesh, run.places, None)
  steps.compile(run.state)
  return run.state, steps


def all_metrics(state, steps, counts):
  """The metrics of steps that are taken in several calls."""
  found = []
  for count in counts:
    while count:
      state, metrics, taken = steps(state, count)
      many = np.ndim(metrics['loss']) > 0  # a step alone has no axis of steps
      found += [
        {k: np.asarray(v)[i] if many else v for k, v in metrics.items()}
        for i in range(taken)
      ]
      count -= taken
  steps.batches.close()
  return {k: np.array([m[k] for m in found]) for k in found[0]}, state


@pytest.mark.slow
def test_metrics_and_weights_are_those_of_steps_from_the_host(run_of, config):
  config.train.log_every = 4
  found = {}
  for resident in (False, True):
    state, steps = opened(run_of, config, (1, 1, 1), resident)
    found[resident] = all_metrics(state, steps, (1, 4, 2))
  (host, host_state), (many, state) = found[False], found[True]
  assert host.keys() == many.keys() and len(many['loss']) == 7
  for name, values in host.items():
    np.testing.assert_allclose(many[name], values, 1e-4, 1e-6, err_msg=name)
  for a, b in zip(
    jax.tree.leaves(host_state.params),
    jax.tree.leaves(state.params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert int(state.step) == 7


@pytest.mark.slow
def test_where_programs_are_cut_changes_no_digit(run_of, config):
  config.train.log_every = 4
  config.data.update(dict(crop='pad', pad=1, flip=True))
  runs = []
  for counts in ((7,), (1, 1, 1, 1, 1, 1, 1), (2, 4, 1)):
    state, steps = opened(run_of, config, (1, 1, 1), True)
    steps._pace.steps = lambda: 4  # whatever the time
    runs.append(all_metrics(state, steps, counts))
  for metrics, state in runs[1:]:
    for name, values in metrics.items():
      np.testing.assert_array_equal(values, runs[0][0][name])
    same = jax.tree.map(np.array_equal, state, runs[0][1])
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one(run_of, config):
  config.train.log_every = 4
  config.data.update(dict(crop='pad', pad=1, flip=True))
  alone, _ = all_metrics(*opened(run_of, config, (1, 1, 1), True), (4,))
  state, steps = opened(run_of, config, (2, 2, 2), True)
  rows = steps.batches.take(0, 4)
  spec = jax.sharding.PartitionSpec(None, mesh_lib.BATCH_AXES)
  assert rows['index'].sharding.spec == spec
  found, _ = all_metrics(state, steps, (4,))
  np.testing.assert_allclose(found['loss'], alone['loss'], atol=1e-5)


@pytest.mark.slow
def test_a_run_that_stopped_anywhere_has_the_same_losses(tmp_path):
  """Stopped between two lines of the log, and inside of an interval."""
  changes = {'train.steps': 9, 'train.log_every': 3, 'save.every_steps': 0}
  config = small(**(TINY | AUGMENTED | changes))
  train_on(1, (1, 1, 1), config, tmp_path / 'whole', 0)
  for _ in range(4):  # stopped after the first program, of one step, and so on
    trainer = train_on(1, (1, 1, 1), config, tmp_path / 'cut', 0)
    if trainer.step == 9:
      break
  whole, cut = losses(tmp_path / 'whole'), losses(tmp_path / 'cut')
  assert list(whole) == [1, 3, 6, 9] and whole == cut
  end = [
    train_on(1, (1, 1, 1), config, tmp_path / name, 0).state
    for name in ('whole', 'cut')
  ]
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *end)))


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, [10, 20, 30]),
    ({'eval.every_steps': 15}, [10, 15, 20, 30]),
    ({'save.every_steps': 12, 'attack.every_steps': 25}, [10, 12, 20, 24, 25]),
    ({'train.profile_steps': (5, 7)}, [4, 7, 10, 20]),
    ({'train.profile_steps': (1, 1)}, [1, 10, 20]),
    ({'save.every_minutes': 1.0}, [10, 20, 30]),
    ({'train.steps': 13}, [10, 13]),
  ],
)
def test_programs_end_where_something_happens(changes, expected):
  config = small(
    **({'train.steps': 100, 'train.log_every': 10, 'save.every_steps': 0})
  )
  config.update_from_flattened_dict(changes)
  step, ends = 0, []
  while step < expected[-1]:
    step += events.steps_ahead(config, step)
    ends.append(step)
  assert ends == expected


def test_the_first_process_is_asked_for_its_clock_in_time(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  config = small(**{'train.steps': 100, 'train.log_every': 50})
  config.save.update(dict(every_steps=0, every_minutes=1.0))
  assert events.steps_ahead(config, 0) == 20
  assert events.steps_ahead(config, 41) == 9


def test_a_program_takes_about_a_second():
  now = [0.0]
  pace = advance.Pace(clock=lambda: now[0])

  def programs(count, seconds, pause=0.0):
    taken = []
    for _ in range(count):
      taken.append(pace.steps())
      pace.started(taken[-1], {})
      now[0] += seconds * taken[-1] + pause
    return taken

  assert programs(6, 1 / 64)[-1] == 64
  assert programs(1, 1 / 64, pause=60) == [64]  # an evaluation
  assert programs(2, 1 / 64) == [64, 64]
  assert programs(12, 1 / 8)[-1] == 8
  assert programs(12, 5.0)[-1] == 1
