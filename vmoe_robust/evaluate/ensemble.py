"""Runs an ensemble of attacks over examples and judges what came out.

The story of one radius: every example is judged clean (`evaluator.py`); each
attack in turn is given those that still stand, in slots that are never empty
while there are any; at the end every x_adv is judged again as mere numbers, and
only that is reported.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from vmoe_robust.attacks import Ensemble
from vmoe_robust.distributed import agreed
from vmoe_robust.evaluate import slots as slots_lib
from vmoe_robust.evaluate.evaluator import Clean, Evaluator, Rows
from vmoe_robust.evaluate.fall import (
  CORRUPT,
  STANDS,
  WRONG,
  Fall,
  State,
  unique,
)
from vmoe_robust.evaluate.queue import Queue
from vmoe_robust.evaluate.snapshot import Snapshots
from vmoe_robust.evaluate.victim import Score, Victim
from vmoe_robust.mesh import replicated

# Steps that slots take between two looks of the host, at most.
_MOST_STEPS = 50


@dataclasses.dataclass
class _Radius:
  """What `Runner.attack` was given."""

  rows: Rows
  clean: Clean
  eps: float
  snapshots: Snapshots
  x_adv: np.ndarray
  on_progress: Callable[[str, int, int, int], None]
  saved_at: float = dataclasses.field(default_factory=time.monotonic)


class Runner:
  """Programs for one model, one ensemble and one shape, compiled once."""

  def __init__(
    self,
    victim: Victim,
    ensemble: Ensemble,
    score: Score,
    seed: int,
    batch_size: int,
    save_every: float = 60.0,
  ):
    """Compiles nothing yet.

    Args:
      victim: what is attacked.
      ensemble: the attacks.
      score: judges x_adv; `simple_score` for a plain function.
      seed: of all that is drawn.
      batch_size: slots, of all devices together.
      save_every: seconds between two snapshots at least.
    """
    self.ensemble, self.victim = ensemble, victim
    self._seed, self.batch, self._save_every = seed, batch_size, save_every
    ranks = 1 + max(stage.targets for stage in ensemble.stages)
    self.evaluator = Evaluator(victim, score, seed, batch_size, ranks)
    self._batch_rows = self.evaluator.batch_rows
    self._whole = replicated(victim.mesh)
    self._programs, self._begins = {}, {}

  @property
  def layout(self) -> list:
    """By which the arrays of a snapshot are known to fit."""
    devices = self.victim.mesh.devices
    kind = devices.flat[0].device_kind
    return [jax.process_count(), devices.size, kind, self.batch]

  def attack(
    self,
    rows: Rows,
    clean: Clean,
    eps: float,
    snapshots: Snapshots,
    x_adv: np.ndarray,
    on_progress: Callable[[str, int, int, int], None] = lambda *_: None,
  ) -> Fall:
    """Attacks what stands, stage after stage.

    Args:
      rows: the examples.
      clean: what `clean` found.
      eps: radius, in units of pixels in [0, 1].
      snapshots: from which it goes on, and where it saves.
      x_adv: filled in: of what fell what broke it, of what stands where the
        first attack came to its end.
      on_progress: told the attack, the attempts done and left, and the number
        of examples that stand.
    """
    state = self._restore(snapshots, clean, eps)
    radius = _Radius(rows, clean, eps, snapshots, x_adv, on_progress)
    for number, stage in enumerate(self.ensemble.stages):
      if number < state.stage:
        continue
      if number > state.stage:
        state.enter(number)
      begun = time.perf_counter()
      standing = self._stage(number, state, radius)
      fall, name = state.fall, unique(stage.name, state.fall.robust_after)
      fall.robust_after[name] = float(standing.sum() / clean.mask.sum())
      fall.seconds[name] = time.perf_counter() - begun
    _flush(x_adv)
    return state.fall

  def _restore(self, snapshots, clean, eps):
    found = snapshots.load()
    if found is not None:
      state = State.read(found)
      if not snapshots.same_layout():
        # What was in the slots is lost: the attack begins again.
        state.index = np.full(self.batch, -1, np.int32)
        state.tried, state.resumed = state.index.copy(), False
        state.enter(state.stage)
      return state
    fallen = np.where(clean.right, STANDS, WRONG).astype(np.int16)
    fallen[~clean.mask] = CORRUPT
    return State(Fall(eps, fallen, {}, {}), np.full(self.batch, -1, np.int32))

  def _stage(self, number: int, state: State, radius: _Radius):
    """One attack on what stands; returns what still does."""
    stage, program = self.ensemble.stages[number], self._program(number)
    standing = state.fall.fallen == STANDS
    queue = Queue(standing, stage.attempts, state.attempt, state.position)
    slots = None
    while True:
      enter = self._fill(state, queue)
      active = state.index >= 0
      if not active.any():
        return standing
      items = self._items(radius, state, stage, enter)
      if slots is None:
        slots = self._empty(number, items, radius.snapshots, state)
      slots, report = program(
        self.victim.params,
        slots,
        items,
        self._batch_rows.spread(enter),
        self._batch_rows.spread(active),
        np.float32(radius.eps),
        np.int32(state.tick),
      )
      if jax.process_count() == 1:  # of several, who needs them is not known
        radius.rows.ahead(queue.coming(self.batch))
      report = jax.device_get(report)
      state.tick += 1
      done = active & (
        report['broken'] | (report['turn'] >= stage.attack.steps)
      )
      self._collect(state, slots, report, done, radius.x_adv, number)
      standing[:] = state.fall.fallen == STANDS
      radius.on_progress(
        f'{stage.name} {radius.eps:.4g}',
        queue.left() + int((state.index >= 0).sum()),
        int(done.sum()),
        int(standing.sum()),
      )
      # Clocks differ, and a snapshot is made by all processes together.
      if agreed(time.monotonic() - radius.saved_at >= self._save_every):
        _flush(radius.x_adv)
        state.attempt, state.position = queue.attempt, queue.position
        radius.snapshots.save(state.arrays(), slots)
        radius.saved_at = time.monotonic()

  def _program(self, number: int):
    if number not in self._programs:
      stage = self.ensemble.stages[number]
      program = slots_lib.advance(
        self.victim,
        stage,
        self._seed,
        number,
        self._steps(stage),
        self.ensemble.draws,
      )
      self._programs[number] = jax.jit(
        program,
        donate_argnums=1,
        out_shardings=(self._batch_rows.sharding, self._whole),
      )
    return self._programs[number]

  def _steps(self, stage) -> int:
    return min(max(stage.attack.steps // 10, 1), _MOST_STEPS)

  def _fill(self, state, queue) -> np.ndarray:
    """Gives free slots to what is next; says which."""
    free = np.flatnonzero(state.index < 0)
    enter = np.zeros(self.batch, bool)
    for slot, (index, attempt) in zip(
      free, queue.take(len(free)), strict=False
    ):
      state.index[slot], state.tried[slot] = index, attempt
      enter[slot] = True
    return enter

  def _items(self, radius, state, stage, enter) -> slots_lib.Items:
    wanted = np.where(enter, state.index, -1)
    clean, mine = radius.clean, radius.rows(wanted[self._batch_rows.mine])
    where = np.maximum(state.index, 0)
    rank = 1 + np.maximum(state.tried, 0) // stage.restarts
    rank = np.minimum(rank, clean.ranked.shape[1] - 1)
    spread = lambda x: self._batch_rows.spread(x.astype(np.int32))
    return slots_lib.Items(
      image=self._batch_rows.put(mine['image']),
      label=spread(clean.label[where]),
      target=spread(clean.ranked[where, rank]),
      index=spread(state.index),
      attempt=spread(np.maximum(state.tried, 0)),
    )

  def _empty(self, number, items, snapshots, state) -> slots_lib.Slots:
    """The slots of the snapshot, or slots whose content means nothing."""
    if number not in self._begins:
      stage = self.ensemble.stages[number]
      start = slots_lib.begin(stage, self._seed, number)
      self._begins[number] = jax.jit(
        start, out_shardings=self._batch_rows.sharding
      )
    made = self._begins[number](items, np.float32(0))
    if not state.resumed:
      return made
    state.resumed = False
    return snapshots.device(made)

  def _collect(self, state, slots, report, done, x_adv, number):
    """Takes what is done out of its slots."""
    fallen = state.fall.fallen
    fell = done & report['broken']
    first = (number == 0) & (state.tried == 0)
    wanted = fell | (done & first)
    self._batch_rows.take(slots.state.x_adv, wanted, x_adv, state.index)
    fallen[state.index[fell]] = number
    # Other attempts on what fell are not needed.
    gone = (state.index >= 0) & (fallen[state.index] != STANDS)
    state.index[done | gone] = -1


def _flush(x_adv: np.ndarray):
  if isinstance(x_adv, np.memmap):
    x_adv.flush()
