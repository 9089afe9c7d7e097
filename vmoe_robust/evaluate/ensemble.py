"""Runs an ensemble of attacks over examples and judges what came out.

The story of one radius: every example is judged clean; each attack in turn is
given those that still stand, in slots that are never empty while there are any;
at the end every x_adv is judged again as mere numbers, and only that is
reported.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust.attacks import Ensemble
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import slots as slots_lib
from vmoe_robust.evaluate import warn
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
from vmoe_robust.evaluate.victim import (
  JUDGE_DRAWS,
  Score,
  Victim,
  as_floats,
  is_broken,
  predict,
)
from vmoe_robust.mesh import (
  agreed,
  batch_sharding,
  batch_shards,
  replicated,
)
from vmoe_robust.mesh.batch import BatchRows

# Steps that slots take between two looks of the host, at most.
_MOST_STEPS = 50


@runtime_checkable
class Rows(Protocol):
  """Examples by number: 'image', 'label' and 'mask'; see `data.rows.Rows`."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Their fields, stacked; -1 is padding."""
    ...

  def ahead(self, indices: Iterable[int]):
    """Says which will be asked for."""
    ...


@dataclasses.dataclass(frozen=True)
class Clean:
  """What the model says of the examples as they are."""

  label: np.ndarray  # int32
  mask: np.ndarray  # False: corrupt
  right: np.ndarray
  ranked: np.ndarray  # classes from the likeliest on, as many as are needed


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
    shards = batch_shards(victim.mesh)
    if batch_size % shards:
      raise UserError(
        f'batch_size={batch_size} is not divisible by the {shards} devices '
        f'that share it; use {batch_size // shards * shards or shards}'
      )
    self._batch_rows = BatchRows(batch_sharding(victim.mesh), batch_size)
    self._whole = replicated(victim.mesh)
    self._programs, self._begins = {}, {}
    self._checks = warn.Checks(victim)
    self._all = jax.jit(lambda x: x, out_shardings=self._whole)
    self._score = jax.jit(score, out_shardings=(self._whole, self._whole))
    self._look = jax.jit(self._look_at, out_shardings=self._whole)

  @property
  def layout(self) -> list:
    """By which the arrays of a snapshot are known to fit."""
    devices = self.victim.mesh.devices
    kind = devices.flat[0].device_kind
    return [jax.process_count(), devices.size, kind, self.batch]

  def clean(self, rows: Rows) -> Clean:
    """Judges every example as it is."""
    found = []
    for indices in self._batches(len(rows)):
      batch = self._put(rows(indices[self._batch_rows.mine]), indices)
      found.append(jax.device_get(self._look(self.victim.params, batch)))
      found[-1] = {k: v[indices >= 0] for k, v in found[-1].items()}
    return Clean(
      **{k: np.concatenate([one[k] for one in found]) for k in found[0]}
    )

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

  def judge(
    self, rows: Rows, x_adv: np.ndarray, eps: float
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Judges every x_adv as mere numbers; columns by example, and sums."""
    columns, sums = [], {}
    for indices in self._batches(len(rows)):
      mine = indices[self._batch_rows.mine]
      batch = self._put(rows(mine), indices)
      images = self._batch_rows.put(x_adv[np.maximum(mine, 0)])
      out, load = jax.device_get(
        self._score(self.victim.params, batch, images, np.float32(eps))
      )
      out |= {
        'index': indices,
        'label': jax.device_get(self._all(batch['label'])),
      }
      keep = (indices >= 0) & jax.device_get(self._all(batch['mask']))
      columns.append({k: v[keep] for k, v in out.items()})
      for name, count in load.items():
        sums[name] = sums.get(name, 0) + count
    return {
      k: np.concatenate([one[k] for one in columns]) for k in columns[0]
    }, sums

  def warnings(self, rows: Rows) -> list[str]:
    """What makes the numbers hard to believe, before anything is attacked.

    Raises:
      UserError: images change each other's predictions.
    """
    indices = next(self._batches(len(rows)))
    batch = self._put(rows(indices[self._batch_rows.mine]), indices)
    images = as_floats(batch['image'])
    return self._checks(
      self.victim.params, images, batch['label'], batch['mask']
    )

  # The rest is in the order of its use.

  def _batches(self, count: int):
    for begin in range(0, count, self.batch):
      indices = np.arange(begin, begin + self.batch, dtype=np.int32)
      yield np.where(indices < count, indices, -1)

  def _put(self, mine: dict, indices: np.ndarray) -> dict[str, jax.Array]:
    out = {
      k: self._batch_rows.put(np.asarray(v))
      for k, v in mine.items()
      if k != 'index'
    }
    return out | {'index': self._batch_rows.spread(indices)}

  def _look_at(self, params, batch):
    victim = dataclasses.replace(self.victim, params=params)
    logits = predict(
      victim,
      victim.forward,
      as_floats(batch['image']),
      batch['mask'],
      jax.random.key(self._seed),
      JUDGE_DRAWS,
    )
    label = batch['label'].astype(jnp.int32)
    count = 1 + max(stage.targets for stage in self.ensemble.stages)
    return {
      'label': label,
      'mask': batch['mask'],
      'right': ~is_broken(logits, label) & batch['mask'],
      'ranked': jax.lax.top_k(logits, count)[1],
    }

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
