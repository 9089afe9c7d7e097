"""The engine: slots, stages, resuming, and what the judge keeps."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.robustness.problems import EXAMPLES, SHAPE, problem
from vmoe_robust import robust_accuracy
from vmoe_robust.attacks import Budget, Ensemble, Pgd, Stage, ensemble
from vmoe_robust.mesh import create
from vmoe_robust.robustness import engine, sweep
from vmoe_robust.robustness.foreign import of_function
from vmoe_robust.robustness.images import InMemory, read
from vmoe_robust.robustness.measure import Arrays, Clean
from vmoe_robust.robustness.programs import Programs, Work
from vmoe_robust.robustness.radius import STANDS, Left, Radius
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.robustness.work import Batches, Queue, fitting


@functools.cache  # compiled once
def programs(devices=1, convolves=False):
  fn, images, labels = problem()
  mesh = create((devices, 1, 1), jax.devices()[:devices])
  target = of_function(fn, None, SHAPE, mesh)
  target = dataclasses.replace(target, convolves=convolves)
  attacks = ensemble(('pgd', 'apgd_t', 'square'), 'linf', 5, Budget(6, 20))
  return Programs(target, attacks, norm='linf', seed=0, batch_size=16)


@functools.cache
def uninterrupted():
  """The attack as it goes without a stop, and what it told on the way."""
  told = []
  found, kept = swept(tell=lambda *what: told.append(what))
  return found, kept, told


def swept(folder=None, tell=lambda *_: None, save_every=0.0, **how):
  """The attack, and x_adv of each radius."""
  _, images, labels = problem()
  kept = {}

  def keeper(eps):
    kept[eps] = InMemory(images.copy())
    return kept[eps]

  found = sweep.run(
    programs(**how),
    Arrays(images, labels.astype(np.int32)),
    (0.03, 0.05),
    unfinished=Unfinished(folder, {'of': 'a test'}),
    keeper=None if folder else keeper,
    archive=folder and folder / 'x_adv',
    on_turn=tell,
    save_every=save_every,
  )
  return found, kept


class Killed(BaseException):
  pass


def killed_after(updates):
  count = [0]

  def tell(*_):
    count[0] += 1
    if count[0] == updates:
      raise Killed

  return tell


def archived(folder, found):
  """x_adv that was kept in a folder, in the order of the records."""
  parts = []
  for eps in (0.03, 0.05):
    rows = found.columns['eps'] == eps
    process, row = (
      found.columns[f'x_adv_{name}'][rows] for name in ('process', 'row')
    )
    parts.append(read(folder / 'x_adv' / str(eps), process, row, SHAPE))
  return np.concatenate(parts)


@pytest.mark.slow
@pytest.mark.parametrize('updates', [1, 9, 25, 60])
def test_what_is_cut_short_goes_on_to_the_same_end(tmp_path, updates):
  expected, kept, _ = uninterrupted()
  with pytest.raises(Killed):
    swept(tmp_path, killed_after(updates))
  found, _ = swept(tmp_path)
  for name, column in expected.columns.items():
    np.testing.assert_array_equal(found.columns[name], column, name)
  x_adv = np.concatenate([one.x_adv for one in kept.values()])
  np.testing.assert_array_equal(archived(tmp_path, found), x_adv)
  assert [f.robust_after for f in found.falls.values()] == [
    f.robust_after for f in expected.falls.values()
  ]
  assert [f.blind for f in found.falls.values()] == [
    {'pgd': 0, 'apgd_t': 0}
  ] * 2
  again, _ = swept(tmp_path, killed_after(1))  # nothing is attacked
  np.testing.assert_array_equal(archived(tmp_path, again), x_adv)
  assert again.images_per_second is None and expected.images_per_second > 0
  fell, shown = expected.shown, again.shown
  np.testing.assert_array_equal(shown.x_adv[: len(fell.index)], fell.x_adv)
  # Of what is in a folder, some that stand are shown too.
  assert len(shown.index) == len(fell.index) + 16
  np.testing.assert_array_equal(shown.x_adv, kept[shown.eps].x_adv[shown.index])
  here = np.flatnonzero(found.columns['eps'] == shown.eps)[shown.index]
  stands = found.columns['fallen_in'][here] == -1
  assert stands.tolist() == [False] * len(fell.index) + [True] * 16


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_loops_of_the_host_end_as_those_of_a_program(devices):
  expected, kept, _ = uninterrupted()
  found, apart = swept(devices=devices, convolves=True)
  assert set(found.columns) == set(expected.columns)
  for name, column in expected.columns.items():
    np.testing.assert_allclose(
      found.columns[name], column, atol=1e-5, err_msg=name
    )
  for eps, one in kept.items():
    np.testing.assert_allclose(apart[eps].x_adv, one.x_adv, atol=1e-6)


def test_seconds_of_a_stage_are_those_before_the_cut_too(monkeypatch):
  zeros = np.zeros(2, np.int32)
  before = {'prediction_before': zeros}
  clean = Clean(zeros, np.ones(2, bool), zeros[:, None], before)
  radius = Radius(0.1, clean)
  radius.enter(0)
  clock = [10.0]
  monkeypatch.setattr('time.perf_counter', lambda: clock[0])

  class Turns:
    """A stage of 3 seconds, which saves after 2 of them."""

    def __init__(self, *_):
      pass

    def run(self, on_turn, is_due, save):
      clock[0] += 2
      save()
      clock[0] += 1

  monkeypatch.setattr(engine, '_Turns', Turns)
  rows = Arrays(np.zeros((2, *SHAPE), np.float32), zeros)
  work, saved = Work(radius, rows, None, {}), []
  engine.attack(programs(), work, save=lambda: saved.append(radius.arrays()))
  assert radius.seconds == {'pgd': 3.0, 'apgd_t': 3.0, 'square': 3.0}
  work.radius = Radius.read(saved[0], clean, 1)
  assert work.radius.spent == 2.0
  engine.attack(programs(), work)
  assert work.radius.seconds == {'pgd': 5.0, 'apgd_t': 3.0, 'square': 3.0}


def test_what_compiles_inside_of_another_counts_once(monkeypatch):
  known = programs()
  mine = Programs(
    known.target, known.ensemble, norm='linf', seed=0, batch_size=16
  )
  ticks = iter(range(9))
  monkeypatch.setattr('time.perf_counter', lambda: float(next(ticks)))
  inner = lambda: mine.timed(('inner',), lambda: None)
  mine.timed(('outer',), inner)  # from 0 to 3, the inner one from 1 to 2
  assert mine.compile_seconds == 3
  mine.timed(('outer',), inner)
  assert mine.compile_seconds == 3


@pytest.mark.slow
def test_what_ended_is_not_attacked_again(tmp_path):
  whole, first, rest = uninterrupted()[2], [], []
  with pytest.raises(Killed):
    swept(tmp_path, lambda *a: (first.append(a), killing(first, 40)))
  swept(tmp_path, lambda *a: rest.append(a))
  # What was in the slots begins again, and that is one attempt at most.
  attempt = 21 // 4 + 1  # calls of the longest stage
  assert len(first) + len(rest) <= len(whole) + attempt


def killing(seen, count):
  if len(seen) == count:
    raise Killed


@pytest.mark.slow
def test_on_other_devices_it_goes_on_too(tmp_path):
  expected = uninterrupted()[0].columns
  with pytest.raises(Killed):
    swept(tmp_path, killed_after(30))
  found = swept(tmp_path, devices=8)[0].columns
  for name in ('prediction_after', 'fallen_in', 'index', 'eps'):
    np.testing.assert_array_equal(found[name], expected[name])


def test_progress_counts_steps_and_ends_at_all_of_them():
  ticks = uninterrupted()[2]
  names = list(dict.fromkeys(name for name, *_ in ticks))
  assert names == [
    f'{stage} {eps}/255'
    for eps in (7.65, 12.75)
    for stage in ('pgd', 'apgd_t', 'square')
  ]
  for name in names:
    done = [tick[1] for tick in ticks if tick[0] == name]
    total = [tick[2] for tick in ticks if tick[0] == name]
    assert done == sorted(done) and done[-1] == total[-1]
    assert total == sorted(total, reverse=True)  # images fall


@pytest.mark.slow
def test_when_all_steps_are_done_all_that_fell_is_told():
  last = {}

  def tell(name, done, total, standing):
    last[name] = standing

  found, _ = swept(tell=tell, save_every=1e9)
  assert last == {
    f'{stage} {255 * eps:.4g}/255': EXAMPLES * share
    for eps, fall in found.falls.items()
    for stage, share in fall.robust_after.items()
  }


def test_slots_are_full_while_there_is_work():
  found, _, ticks = uninterrupted()
  falls = found.falls
  for eps, fall in falls.items():
    # Four targets, 7 steps each, in 16 slots; only the end is not full.
    steps = 7 * 4 * EXAMPLES * fall.robust_after['pgd'] / 16
    calls = [a for a in ticks if a[0] == f'apgd_t {255 * eps:.4g}/255']
    assert len(calls) <= steps + 7


def test_what_stands_is_known_by_its_number():
  found = uninterrupted()[0]
  columns = found.columns
  stands = columns['prediction_after'] == columns['label']
  np.testing.assert_array_equal(columns['fallen_in'] == STANDS, stands)
  for eps, fall in found.falls.items():
    right = stands[columns['eps'] == eps].mean()
    assert list(fall.robust_after.values())[-1] == right


@pytest.mark.slow
def test_a_fallen_image_stays_fallen():
  """Two attempts on an image may end in the same turn, one of them unbroken."""
  fn, images, _ = problem(examples=600)
  labels = np.asarray(fn(images)).argmax(-1)
  found = robust_accuracy(
    fn,
    images,
    labels,
    attack='square',
    eps=0.1,
    queries=60,
    restarts=5,
    batch_size=512,
    progress=False,
  )
  right = np.asarray(fn(found.x_adv)).argmax(-1) == labels
  np.testing.assert_array_equal(found.robust, right)
  assert 0 < found.accuracy == found.per_attack['square'] == right.mean() < 1


def left(index, attempt, value, stage=0):
  as_array = lambda x, kind: np.asarray(x, kind)
  return Left(
    as_array(index, int), as_array(attempt, int), as_array(value, float), stage
  )


def radius(examples, together=1):
  label, mask = np.zeros(examples, np.int32), np.ones(examples, bool)
  clean = {'prediction_before': label}
  return Radius(0.1, Clean(label, mask, label[:, None], clean), together)


def test_steps_without_a_gradient_are_counted_for_each_stage():
  first = radius(4)
  first.enter(0)
  first.count(np.array([0, 1, 1]), 11, np.array([11, 5, 5]))  # twice image 1
  # Cut short, it goes on with what it had.
  here = Radius.read(first.arrays(), first.clean, 1)
  here.count(np.array([0, 2]), 11, np.array([0, 6]))
  here.end_stage('apgd_t', 1.0, follows=True)
  assert here.blind['apgd_t'].tolist() == [False, True, False, False]
  here.enter(1)
  here.count(np.array([0]), 50, np.array([0]))
  here.end_stage('square', 1.0, follows=False)
  here.enter(2)
  here.count(np.array([0]), 2, np.array([1]))  # the last point is looked at
  here.end_stage('apgd_t', 1.0, follows=True)
  here = Radius.read(here.arrays(), here.clean, 1)
  assert list(here.blind) == ['apgd_t', 'apgd_t#2']
  assert not here.blind['apgd_t#2'].any() and here.blind['apgd_t'][1]


def test_of_two_attempts_that_end_together_the_one_that_broke_it_counts():
  for order in ([0, 1], [1, 0]):
    here = radius(2)
    top = np.array([1, 0])[order]  # the first row's image is broken
    kept = here.record(
      left([1, 1], np.array([1, 0])[order], [-1, 5]),
      {'prediction_after': top},
      stays=False,
    )
    assert here.broken.tolist() == [False, True]
    assert kept.tolist() == (top == 1).tolist()
    assert here.columns['prediction_after'].tolist() == [0, 1]
    assert here.fallen.tolist() == [STANDS, 0]
    # What comes later and breaks nothing changes nothing.
    here.record(left([1], [2], [9]), {'prediction_after': np.array([0])}, False)
    assert here.columns['prediction_after'].tolist() == [0, 1]


def test_of_attempts_that_broke_it_the_earliest_counts():
  """Whichever came out first: that depends on how many run at a time."""
  here = radius(1)
  keeps = lambda attempt, top: here.record(
    left([0], [attempt], [0]), {'prediction_after': np.array([top])}, False
  ).all()
  assert keeps(4, 1) and keeps(2, 3) and not keeps(3, 1) and not keeps(1, 0)
  assert here.columns['prediction_after'].tolist() == [3]
  here = Radius.read(here.arrays(), here.clean, 1)
  here.enter(1)  # whose attempts are not asked
  late = left([0], [0], [9], stage=1)
  assert not here.record(late, {'prediction_after': np.array([1])}, False).any()


def test_the_target_comes_before_the_loss():
  """A restart that misses it replaces none that has reached it."""
  here = radius(2)
  here.clean = dataclasses.replace(here.clean, ranked=np.full((2, 1), 2))
  keeps = lambda value, top: here.record(
    left([1], [0], [value]), {'prediction_after': np.array([top])}, True,
    'target',
  ).all()  # fmt: skip
  assert keeps(0, 1) and keeps(-1, 2)
  assert not keeps(5, 1) and not keeps(5, 0) and keeps(3, 2)
  assert here.columns['prediction_after'].tolist() == [0, 2]


def test_of_images_that_stay_the_highest_loss_counts():
  here, zero = radius(1), {'prediction_after': np.array([0])}
  one = {'prediction_after': np.array([1])}
  keeps = lambda value, columns: here.record(
    left([0], [0], [value]), columns, stays=True
  ).all()
  assert keeps(1, zero) and not keeps(0.5, zero) and keeps(2, zero)
  assert keeps(-1, one)  # broken, whatever its loss
  assert not keeps(5, zero) and keeps(0, one)


def test_a_group_counts_as_a_whole():
  here = radius(4, together=2)
  clean = {'prediction_after': np.array([0, 0, 0, 0])}
  record = lambda top, stage: here.record(
    left([0, 1, 2, 3], [0] * 4, [0] * 4, stage),
    {'prediction_after': np.array(top)},
    stays=True,
  ).tolist()
  assert record([0, 0, 0, 0], -1) == [True] * 4 and clean
  assert record([1, 0, 0, 0], 0) == [True] * 4
  assert here.fallen.tolist() == [0, STANDS, STANDS, STANDS]
  # As many broken: the earlier one stays; more of them: the whole group.
  assert record([0, 1, 2, 2], 1) == [False, False, True, True]
  assert here.fallen.tolist() == [0, STANDS, 1, 1]
  assert here.accuracy() == 0.25


def test_attempts_before_the_one_that_broke_an_image_go_on():
  standing, limit = np.array([True, False]), np.array([0, 3])
  queue = Queue(
    standing, limit, 9, attempt=9, again=[(1, 2), (1, 4), (0, 7), (1, 3)]
  )
  assert queue.left() == 2
  assert queue.take(5) == [(1, 2), (0, 7)]


@pytest.mark.parametrize(
  ('need', 'shards', 'most', 'slots'),
  [
    *((1, 1, 256, 1), (23, 1, 256, 24), (25, 1, 256, 32), (99, 1, 100, 100)),
    *((3, 8, 64, 8), (9, 8, 64, 16), (60, 8, 64, 64)),
  ],
)
def test_few_sizes_hold_any_number_of_images(need, shards, most, slots):
  assert fitting(need, shards, most) == slots


def test_a_queue_skips_what_fell_and_goes_on_where_it_was():
  standing = np.array([True, False, True, True])
  queue = Queue(standing, np.zeros(len(standing), int), 2)
  assert queue.left() == 6 and queue.coming(9) == [0, 2, 3]
  assert queue.take(2) == [(0, 0), (2, 0)]
  standing[3] = False
  assert queue.take(2) == [(0, 1), (2, 1)]
  standing[0] = False
  assert queue.left() == 0 and queue.take(5) == []


def test_what_was_cut_short_comes_first():
  queue = Queue(
    np.ones(3, bool), np.zeros(3, int), 1, position=2, again=[(1, 0), (0, 0)]
  )
  assert queue.left() == 3 and queue.coming(2) == [1, 0]
  assert queue.take(9) == [(1, 0), (0, 0), (2, 0)]


def test_batches_come_whole_and_those_that_fell_are_left_out():
  standing = np.array([True, True, False, False, True])
  queue = Batches(standing, attempts=2, size=2)
  assert queue.take(1) == []  # others are still at work
  assert queue.take(2) == [(0, 0), (1, 0)]
  assert queue.take(2) == [(0, 1), (1, 1)] and queue.before == (1, 0)
  assert queue.take(2) == [(4, 0), (-1, 0)]
  standing[4] = False
  assert queue.take(2) == []


@pytest.mark.slow
def test_fab_on_images_that_stay_together_finds_what_it_finds_alone():
  fn, images, labels = problem()
  mesh = create((1, 1, 1), jax.devices()[:1])
  alone = of_function(fn, None, SHAPE, mesh)
  rows, robust = Arrays(images, labels.astype(np.int32)), []
  for target in alone, dataclasses.replace(alone, together=2, is_known=True):
    fab = ensemble('fab_t', 'linf', 5, Budget(6, targets=1))
    found = sweep.run(
      Programs(target, fab, norm='linf', seed=0, batch_size=22),
      rows,
      (0.05,),
      unfinished=Unfinished(None, {}),
    )
    columns = found.columns
    robust.append(columns['prediction_after'] == columns['label'])
  assert 0 < robust[0].sum() < (columns['prediction_before'] == labels).sum()
  np.testing.assert_array_equal(*robust)


def test_an_attempt_as_one_program_is_what_the_turns_do():
  fn, images, labels = problem()
  labels = labels.astype(np.int32)
  target = of_function(fn, None, SHAPE, create((1, 1, 1), jax.devices()[:1]))
  stages = Ensemble((Stage('pgd', Pgd('linf', 25), 'margin', stays=True),))
  programs = Programs(target, stages, norm='linf', seed=0, batch_size=EXAMPLES)
  kept = InMemory(images.copy())
  sweep.run(
    programs,
    Arrays(images, labels),
    (0.05,),
    unfinished=Unfinished(None, {}),
    keeper=lambda _: kept,
  )
  index = np.arange(EXAMPLES, dtype=np.int32)
  batch = dict(image=images, label=labels, target=labels, index=index)
  batch['mask'] = np.ones(EXAMPLES, bool)
  slots, report = programs.attempt(0)(target.params, batch, np.float32(0.05))
  assert (np.asarray(report['turn']) == 26).all()
  np.testing.assert_allclose(slots.state.x_adv, kept.x_adv, atol=1e-6)
