"""The one way from images to x_adv: stages in order, images in slots.

The story of one radius: each stage is given the images that stand, in slots
that are refilled while there are any. What leaves its slot goes to the outbox
and is judged as mere numbers, in batches; only the judge's columns are kept,
and x_adv where it is asked for. Images that share capacity enter and leave
together.
"""

import time
from collections.abc import Callable

import jax
import numpy as np

from vmoe_robust.mesh import batch_sharding
from vmoe_robust.mesh.batch import BatchRows
from vmoe_robust.report import table
from vmoe_robust.robustness import slots as slots_lib
from vmoe_robust.robustness.programs import Programs, Work
from vmoe_robust.robustness.radius import STANDS, Left
from vmoe_robust.robustness.work import Batches, Queue, fitting

# Steps that slots take between two looks of the host, at most.
_MOST_STEPS = 50
# A stage goes on in fewer slots when so few of them are left.
_SHRINK = 4
# How often an image whose fall the judge denied is attacked again: each time
# is another draw of the judge's, and one that sees it fall counts.
_MOST_DENIED = 3

# (the name of the stage, steps done, steps in all, images that stand)
OnTurn = Callable[[str, int, int, int], None]


def attack(
  programs: Programs,
  work: Work,
  on_turn: OnTurn = lambda *_: None,
  is_due: Callable[[], bool] = lambda: False,
  save: Callable[[], None] = lambda: None,
) -> None:
  """Attacks what stands at one radius, stage after stage.

  Args:
    programs: of the model and the ensemble.
    work: what there is to attack, and what is known already; it is changed.
    on_turn: told after each turn of the slots.
    is_due: asked after each turn whether to save.
    save: stores `work`, which is then as it has to be.
  """
  radius = work.radius
  if radius.stage < 0:
    programs.judge_untouched(work)
    radius.enter(0)
  for number in range(radius.stage, len(programs.ensemble.stages)):
    if number > radius.stage:
      radius.enter(number)
    begun = time.perf_counter() - radius.spent

    def save_with_time(begun=begun):
      radius.spent = time.perf_counter() - begun
      save()

    _Turns(programs, work, number).run(on_turn, is_due, save_with_time)
    stage = programs.ensemble.stages[number]
    seconds = time.perf_counter() - begun
    radius.end_stage(stage.name, seconds, stage.needs_gradient)


class _Turns:
  """One stage at work: what is in the slots, and what waits in the outbox."""

  def __init__(self, programs: Programs, work: Work, number: int):
    self._programs, self._work, self._number = programs, work, number
    self._radius, self._stage = work.radius, programs.stage(number)
    self._standing = programs.stands(number, work.radius)
    fell = work.radius.fallen == number
    self._limit = np.where(fell, work.radius.won, 0)
    self._queue = self._make_queue()
    self._denied = np.zeros(len(self._standing), int)
    self._done = 0  # steps
    self._slots: slots_lib.Slots | None = None
    self._outbox: slots_lib.Outbox | None = None
    self._items: slots_lib.Items | None = None
    self._index = self._tried = self._turn = np.zeros(0, np.int32)  # no slots
    self._resize(self._size(self._queue.left()))

  def run(self, on_turn: OnTurn, is_due, save):
    """Until no image is left."""
    eps = table.radius(self._programs.measure.norm, self._radius.eps)
    name = f'{self._stage.name} {eps}'
    while True:
      enter = self._fill()
      active = self._index >= 0
      if not active.any():
        break
      self._advance(enter, active)
      if not self._left():
        self._flush()  # so that the last turn tells all that fell
      on_turn(name, self._done, self._done + self._left(), self._stand())
      if is_due():
        self._pause()
        save()
      self._shrink()
    self._flush()

  def _call(self, name, *args):
    key = name, self._number, self._rows.batch_size
    program = self._programs.compiled(self._number)[name]
    return self._programs.timed(key, program, *args)

  def _make_queue(self) -> Queue | Batches:
    radius, attempts = self._radius, self._stage.attempts
    place = radius.attempt, radius.position
    if self._programs.target.together > 1:
      size = self._programs.batch_size
      return Batches(self._standing, attempts, size, *place)
    again = list(radius.again)
    return Queue(self._standing, self._limit, attempts, *place, again)

  def _size(self, need: int) -> int:
    most = self._programs.batch_size
    if isinstance(self._queue, Batches):
      return most
    return fitting(min(max(need, 1), most), self._programs.shards, most)

  def _resize(self, size: int):
    """Slots of another number; the images in them stay in order."""
    kept = np.flatnonzero(self._index >= 0)
    self._flush()
    place = batch_sharding(self._programs.target.mesh)
    self._rows = BatchRows(place, size)
    if len(kept):
      rows = np.resize(kept, size)  # the others repeat, and are not active
      self._slots = self._call('pick', self._slots, rows)
    old = self._index, self._tried, self._turn
    self._index, self._tried = np.full((2, size), -1, np.int32)
    self._turn = np.zeros(size, np.int32)
    for new, before in zip(
      (self._index, self._tried, self._turn), old, strict=True
    ):
      new[: len(kept)] = before[kept]
    self._outbox = self._items = None
    self._waiting = self._nothing()

  def _nothing(self) -> Left:
    size = self._rows.batch_size
    none, zeros = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    return Left(none, zeros, np.zeros(size, np.float32), self._number)

  def _shrink(self):
    """Where few images are left, fewer slots cost less.

    Images that stay to the end come to it together: the next are fewer at most
    once, which is not worth another program.
    """
    count = int((self._index >= 0).sum())
    if count and not self._queue.left() and not self._stage.stays:
      size = self._size(count)
      if size * _SHRINK <= self._rows.batch_size:
        self._resize(size)

  def _fill(self) -> np.ndarray:
    """Gives free slots to what is next; says which."""
    free = np.flatnonzero(self._index < 0)
    pairs = self._queue.take(len(free))
    before = self._index >= 0
    for slot, (index, attempt) in zip(free, pairs, strict=False):
      self._index[slot], self._tried[slot], self._turn[slot] = index, attempt, 0
    # Of a group that stays together, corrupt images and padding take no part.
    inside = self._radius.clean.mask[np.maximum(self._index, 0)]
    self._index[~inside] = -1
    return ~before & (self._index >= 0)

  def _advance(self, enter, active):
    """One call of the program, and what leaves its slot by it."""
    if enter.any() or self._items is None:
      self._items = self._make_items(enter)
    params = self._programs.target.params
    if self._slots is None:
      self._slots = self._call('empty', params, self._items)
    spread, steps = self._rows.spread, self._stage.attack.steps
    rest = steps - self._turn[active]
    chunk = min(max(steps // 10, 1), _MOST_STEPS)
    ends = self._stage.stays and rest.min() == rest.max() <= chunk
    turn = slots_lib.Turn(
      eps=np.float32(self._radius.eps),
      count=np.int32(min(chunk, rest.max())),
      begins=np.bool_(enter.any()),
      ends=np.bool_(ends),
      tick=np.int32(self._radius.tick),
    )
    self._slots, report = self._call(
      'advance',
      params,
      self._slots,
      self._items,
      spread(enter),
      spread(active),
      turn,
    )
    if jax.process_count() == 1:  # of several, who needs them is not known
      self._work.rows.ahead(self._queue.coming(self._rows.batch_size))
    report = jax.device_get(report)
    self._radius.tick += 1
    moved = np.where(active, report['turn'] - self._turn, 0)
    self._done += int(moved.sum())
    self._turn = np.array(report['turn'])
    self._take(active, report)

  def _take(self, active, report):
    """Takes what is done out of its slots."""
    stays, index = self._stage.stays, self._index
    broken = active & report['broken']
    steps = self._stage.attack.steps
    done = active & (report['turn'] >= steps)
    self._radius.count(index[done], steps, report['led'][done])
    leaves = done if stays else done | broken
    # Of those that stand, the first x_adv is that of the first attempt.
    first = ~self._radius.attacked[np.maximum(index, 0)] & (self._tried == 0)
    wanted = leaves if stays else broken | (leaves & first)
    if wanted.any():
      self._send(wanted, report['value'])
    if not stays and isinstance(self._queue, Queue):
      if self._programs.target.random and broken.any():
        broken = broken & ~self._denials(broken)
      self._fell(broken)
      # Later attempts on what fell are not needed.
      goes_on = self._queue.is_wanted(np.maximum(index, 0), self._tried)
      leaves = leaves | (active & ~goes_on)
    self._index[leaves] = -1
    if self._programs.target.together > 1:
      self._flush()

  def _fell(self, broken):
    """Notes the images of some slots, and by which attempts they fell."""
    for slot in np.flatnonzero(broken):
      i, attempt = self._index[slot], self._tried[slot]
      if not self._standing[i]:
        attempt = min(attempt, self._limit[i])
      self._standing[i], self._limit[i] = False, attempt

  def _denials(self, broken) -> np.ndarray:
    """Where the judge, who draws anew, does not see an image fall.

    These are attacked again, and by other draws.
    """
    self._flush()
    index = self._index
    denied = broken & ~self._radius.broken[np.maximum(index, 0)]
    np.add.at(self._denied, index[denied], 1)
    more = denied & (self._denied[np.maximum(index, 0)] <= _MOST_DENIED)
    if isinstance(self._queue, Queue):
      pairs = zip(index[more], self._tried[more], strict=True)
      self._queue.again += [(int(i), int(a)) for i, a in pairs]
    return denied

  def _send(self, wanted, value):
    """Puts images into the outbox, which is judged when a row is taken."""
    waiting = self._waiting
    if (waiting.index[wanted] >= 0).any():
      self._flush()
      waiting = self._waiting
    if self._outbox is None:
      self._outbox = self._call('outbox', self._slots)
    self._outbox = self._call(
      'collect', self._outbox, self._slots, self._rows.spread(wanted)
    )
    waiting.index[wanted] = self._index[wanted]
    waiting.attempt[wanted] = self._tried[wanted]
    waiting.value[wanted] = value[wanted]

  def _flush(self):
    """Judges what waits in the outbox."""
    if self._outbox is None or not (self._waiting.index >= 0).any():
      return
    left, self._waiting = self._waiting, self._nothing()
    batch = {
      'image': self._outbox.clean,
      'label': self._outbox.label,
      'mask': self._rows.spread(left.index >= 0),
    }
    x_adv, stays = self._outbox.x_adv, self._stage.stays
    self._programs.judge(self._work, left, batch, x_adv, stays)
    # Two programs may round otherwise; only the judge says who has fallen.
    index = left.index[left.index >= 0]
    fell = self._radius.broken[index]
    self._standing[index[~fell]] = True
    if not stays:
      self._limit[index[fell]] = self._radius.won[index[fell]]

  def _pause(self):
    """Makes `work` say all that there is to go on from."""
    self._flush()
    radius, queue = self._radius, self._queue
    radius.attempt, radius.position = queue.attempt, queue.position
    if isinstance(queue, Queue):
      # What is in a slot begins again: an attempt is a function of the seed,
      # the example and its number.
      inside = self._index >= 0
      pairs = zip(self._index[inside], self._tried[inside], strict=True)
      radius.again = [(int(i), int(a)) for i, a in pairs] + queue.again
    elif (self._index >= 0).any():
      radius.attempt, radius.position = queue.before

  def _make_items(self, enter) -> slots_lib.Items:
    index, stage = self._index, self._stage
    wanted = np.where(enter, index, -1)
    clean, mine = self._radius.clean, self._work.rows(wanted[self._rows.mine])
    where = np.maximum(index, 0)
    rank = np.maximum(self._tried, 0) // stage.restarts
    rank = np.minimum(rank, clean.ranked.shape[1] - 1)
    spread = self._rows.spread
    return slots_lib.Items(
      image=self._rows.put(mine['image']),
      label=spread(clean.label[where]),
      target=spread(clean.ranked[where, rank].astype(np.int32)),
      index=spread(index),
      attempt=spread(np.maximum(self._tried, 0)),
    )

  def _left(self) -> int:
    """Steps that are still to come if no image falls."""
    steps, active = self._stage.attack.steps, self._index >= 0
    inside = steps - self._turn[active]
    return int(inside.sum()) + self._queue.left() * steps

  def _stand(self) -> int:
    return int((self._radius.fallen == STANDS).sum())
