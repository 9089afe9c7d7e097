"""The compiled programs of an attack, and the judge of what comes out."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from vmoe_robust.attacks import Ensemble, Stage
from vmoe_robust.mesh import batch_sharding, batch_shards, platform, replicated
from vmoe_robust.mesh.batch import BatchRows
from vmoe_robust.robustness import slots
from vmoe_robust.robustness.apart import Apart
from vmoe_robust.robustness.images import Keeper
from vmoe_robust.robustness.measure import Measure, Rows, Some
from vmoe_robust.robustness.radius import STANDS, Left, Radius
from vmoe_robust.robustness.target import Target, as_floats
from vmoe_robust.robustness.trust import Checks

_MOST_SHOWN = 8
# What the judge says of x_adv, and of the image itself.
_OF_CLEAN = {
  'prediction_after': 'prediction_before',
  'loss_after': 'loss_before',
}


@dataclasses.dataclass
class Work:
  """One radius at work, and what it takes besides the programs.

  Args:
    radius: what is known; it is changed.
    rows: the examples.
    keeper: where x_adv is kept; None: nowhere.
    shown: x_adv of some images that fell, by their numbers, to look at.
  """

  radius: Radius
  rows: Rows
  keeper: Keeper | None = None
  shown: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Programs:
  """Programs for one model, one ensemble and one shape, compiled once."""

  def __init__(
    self,
    target: Target,
    ensemble: Ensemble,
    *,
    norm: str,
    seed: int,
    batch_size: int,
  ):
    """Compiles nothing yet.

    Args:
      target: what is attacked; the weights may be replaced between calls.
      ensemble: the attacks.
      norm: of the ball, 'linf', 'l2' or 'l1'.
      seed: of all that is drawn.
      batch_size: slots at most, of all devices together.

    Raises:
      UserError: the devices cannot share a batch evenly.
    """
    self.target, self.ensemble = target, ensemble
    self.batch_size, self._seed = batch_size, seed
    self.measure = Measure(
      target,
      norm=norm,
      seed=seed,
      batch_size=batch_size,
      ranks=max(1, *(stage.targets for stage in ensemble.stages)),
      aim=ensemble.aim,
    )
    self.checks = Checks(target, ensemble)
    self.shards, self._programs = batch_shards(target.mesh), {}
    self.compile_seconds, self._called = 0.0, set()

  def stands(self, number: int, radius: Radius) -> Bool[np.ndarray, 'images']:
    """The images that a stage attacks."""
    if self.ensemble.stages[number].stays:
      return radius.clean.mask.copy()
    return radius.fallen == STANDS

  def stage(self, number: int) -> Stage:
    """A stage; of a group no image leaves before the others."""
    stage = self.ensemble.stages[number]
    if self.target.together > 1:
      return dataclasses.replace(stage, stays=True)
    return stage

  def program(self, number: int) -> slots.Program:
    """What `compiled` jits."""
    stage = self.stage(number)
    draws = self.ensemble.draws
    return slots.Program(self.target, stage, self._seed, number, draws)

  def compiled(self, number: int) -> dict[str, Callable]:
    """The jitted programs of a stage; each compiles once for a size."""
    if number not in self._programs:
      program, mesh = self.program(number), self.target.mesh
      place, whole = batch_sharding(mesh), replicated(mesh)
      jit = lambda f, **how: jax.jit(f, out_shardings=place, **how)
      if self.target.convolves and platform(mesh) == 'cpu':
        timed = lambda key, *call: self.timed((number, *key), *call)
        advance = Apart(program, place, timed)
      else:
        advance = jax.jit(
          program.advance, donate_argnums=1, out_shardings=(place, whole)
        )
      self._programs[number] = {
        'empty': jit(program.empty),
        'advance': advance,
        'outbox': jit(slots.Outbox.of),
        'collect': jit(slots.collect, donate_argnums=0),
        'pick': jit(slots.pick),
      }
    return self._programs[number]

  def timed(self, key: tuple, program: Callable, *args) -> PyTree:
    """What a program returns; `compile_seconds` counts first calls.

    Args:
      key: of the program and the shapes that it is compiled for.
      program: to call.
      *args: its arguments.
    """
    # What is called for the first time inside of it counts once.
    begun = time.perf_counter() - self.compile_seconds
    first = key not in self._called
    out = program(*args)
    if first:
      self._called.add(key)
      self.compile_seconds = time.perf_counter() - begun
    return out

  def attempt(self, number: int) -> jax.stages.Wrapped:
    """One run of a stage on a batch, jitted; see `slots.Program.attempt`."""
    mesh = self.target.mesh
    places = batch_sharding(mesh), replicated(mesh)
    return jax.jit(self.program(number).attempt, out_shardings=places)

  def judge_untouched(self, work: Work) -> None:
    """Of images that no stage attacks, x_adv is the image itself.

    Of groups that is so until a stage has attacked them.
    """
    radius = work.radius
    wanted = radius.clean.mask.copy()
    part, numbers = work.rows, lambda places: places
    if self.target.together == 1:
      wanted &= ~self.stands(0, radius)
      if not wanted.any():
        return
      some = Some(work.rows, np.flatnonzero(wanted))
      part, numbers = some, some.there
    for places, batch in self.measure.batches(part):
      indices = numbers(places)
      indices = np.where((indices >= 0) & wanted[indices], indices, -1)
      nothing = np.zeros(len(indices))
      left = Left(indices, nothing.astype(int), nothing - np.inf, -1)
      self.judge(work, left, batch, as_floats(batch['image']), stays=False)

  def judge(
    self,
    work: Work,
    left: Left,
    batch: dict[str, jax.Array],
    x_adv: jax.Array,
    stays: bool,
  ) -> None:
    """Judges what left its slots, and keeps what counts.

    Args:
      work: to which it belongs.
      left: which images these are.
      batch: 'image', 'label' and 'mask' of them.
      x_adv: of them.
      stays: see `Radius.record`.

    Raises:
      RuntimeError: an x_adv left its ball or [0, 1], so that its numbers mean
        nothing.
    """
    radius = work.radius
    arguments = self.target.params, batch, x_adv, radius.eps
    key = 'score', len(left.index)
    columns = self.timed(key, self.measure.score, *arguments)
    if left.stage < 0:  # whose verdict is known: another draw gives another
      known, index = radius.clean.columns, np.maximum(left.index, 0)
      for after, before in _OF_CLEAN.items():
        columns = columns | {after: known[before][index]}
    name, until = 'an image', 'wrong'
    if left.stage >= 0:
      stage = self.stage(left.stage)
      name, until = stage.name, stage.until
    if self.ensemble.is_bounded:
      _require_bounds(columns, left.index, radius.eps, self.measure.norm, name)
    kept = radius.record(left, columns, stays, until)
    rows = BatchRows(batch_sharding(self.target.mesh), len(kept))
    if work.keeper is not None:
      work.keeper.keep(x_adv, kept, left.index, rows)
    self._show(work, left.index, kept, x_adv, rows)

  def _show(self, work, index, kept, x_adv, rows):
    """Of the images that fell, the first are there to be looked at."""
    fell = kept & (work.radius.fallen[index] >= 0)
    fell &= rows.owner == jax.process_index()
    most = max(work.shown, default=-1)
    if len(work.shown) >= _MOST_SHOWN:
      fell &= index <= most
    for row in np.flatnonzero(fell):
      image = np.empty((1, *x_adv.shape[1:]), np.float32)
      only = np.arange(len(kept)) == row
      rows.take(x_adv, only, image, np.zeros(len(kept), int))
      work.shown[int(index[row])] = image[0]
    for number in sorted(work.shown)[_MOST_SHOWN:]:
      del work.shown[number]


def _require_bounds(columns, index, eps: float, norm: str, name: str):
  for bound in ('in_ball', 'in_range'):
    outside = ~columns[bound] & (index >= 0)
    if outside.any():
      where = index[outside].tolist()
      raise RuntimeError(
        f'x_adv of examples {where[:5]} by {name} is not {bound} at {norm} '
        f'eps={eps}; please report this'
      )
