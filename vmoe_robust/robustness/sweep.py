"""An ensemble over a sweep of radii, which may be cut short and goes on."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vmoe_robust.config import UserError, eps_name
from vmoe_robust.distributed import agreed, together
from vmoe_robust.report import table
from vmoe_robust.report.verdicts import NO_CLASS, is_right
from vmoe_robust.robustness import engine, trust
from vmoe_robust.robustness.images import Archive, Keeper, read
from vmoe_robust.robustness.measure import Clean, Columns, Rows
from vmoe_robust.robustness.programs import Programs, Work
from vmoe_robust.robustness.radius import STANDS, Radius
from vmoe_robust.robustness.resume import Unfinished

_SAVE_EVERY = 60.0  # seconds, at least
_MOST_STANDING = 16  # of the examples that are shown


@dataclasses.dataclass(frozen=True)
class Shown:
  """Examples for people to look at, those that fell first."""

  eps: float
  index: np.ndarray  # their numbers
  images: np.ndarray
  x_adv: np.ndarray
  before: np.ndarray  # predictions
  after: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fall:
  """What the attacks did at one radius."""

  eps: float
  robust_after: dict[str, float]  # accuracy after each attack
  seconds: dict[str, float]  # of each attack, also before it was cut short
  # Of images that stand, those without a gradient in most steps of an attack.
  blind: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Swept:
  """What an ensemble did at each radius.

  Args:
    columns: a row an example and eps, by eps and example.
    loads: of each eps, sums over the examples.
    corrupt: the examples that were skipped.
    images_per_second: attacked, all attacks together, without compiling; of
      the radii that this process attacked from begin to end, None if of none.
    falls: of each eps, what each attack left.
    warnings: what makes the numbers hard to believe.
    shown: some examples that fell, and some that stand if x_adv is kept.
  """

  columns: Columns
  loads: dict[float, Columns]
  corrupt: list[int]
  images_per_second: float | None
  falls: dict[float, Fall]
  warnings: list[str]
  shown: Shown | None


def run(
  programs: Programs,
  rows: Rows,
  radii: Sequence[float],
  *,
  unfinished: Unfinished,
  keeper: Callable[[float], Keeper] | None = None,
  archive: str | os.PathLike | None = None,
  on_turn: engine.OnTurn = lambda *_: None,
  save_every: float = _SAVE_EVERY,
) -> Swept:
  """Attacks all examples at each radius.

  Args:
    programs: of the model and the ensemble.
    rows: the examples.
    radii: in units of pixels in [0, 1].
    unfinished: where an attack that is cut short leaves what it has; deleted by
      the caller.
    keeper: of a radius, where x_adv is kept; it does not outlive this process.
    archive: a folder in which x_adv is kept, a folder in it for each radius.
    on_turn: see `engine.attack`.
    save_every: seconds between two times that unfinished work is stored.

  Raises:
    RuntimeError: an x_adv left its ball or [0, 1], so that its numbers mean
      nothing.
    UserError: images change each other's predictions, or there is no example.
  """
  params, measure = programs.target.params, programs.measure
  warnings = list(programs.ensemble.notes)
  warnings += trust.of_radii(measure.norm, radii)
  _, batch = next(iter(measure.batches(rows)))
  warnings += programs.checks(params, batch)
  clean = measure.clean(params, rows)
  if not clean.mask.any():
    raise UserError(
      f'none of {len(rows)} images can be judged: they are corrupt, or have no '
      'class; check config.data.dir and config.data.split'
    )
  warnings += trust.before(clean.columns['prediction_before'][clean.mask])
  parts, loads, falls = [], {}, {}
  attacked, seconds = 0, 0.0  # of radii that were not cut short
  shown: Shown | None = None  # at the least radius at which any fell
  for eps in radii:
    name = eps_name(eps)
    folder = archive and pathlib.Path(archive, name)
    found = unfinished.get(f'{name}-done')
    if found is None:
      begun = time.perf_counter() - programs.compile_seconds
      keep = keeper and keeper(eps)
      work = _begin(programs, rows, clean, eps, unfinished, keep, folder)
      save = lambda work=work, name=name: _save(work, unfinished, name)
      is_due, was_new = _Clock(save_every), work.radius.stage < 0
      wanted = int(programs.stands(0, work.radius).sum())
      engine.attack(programs, work, on_turn, is_due, save)
      if work.keeper is not None:
        work.keeper.flush()
      if was_new:
        attacked += wanted
        seconds += time.perf_counter() - programs.compile_seconds - begun
      found = _all(work)
      unfinished.put(f'{name}-done', found)
    columns, loads[eps], falls[eps], seen = _read(found, clean, eps)
    if programs.ensemble.stages[0].until == 'target':
      columns['target'] = clean.ranked[columns['index'], 0]
    warnings += [
      f'eps {table.radius(measure.norm, eps)}: {text}'
      for text in trust.after(
        falls[eps].robust_after,
        int((columns['prediction_after'] == NO_CLASS).sum()),
        _easier(columns),
        falls[eps].blind,
      )
    ]
    parts.append(columns)
    if seen and (shown is None or eps < shown.eps):
      shown = _shown(rows, seen, columns, folder)
  unfinished.wait()
  return Swept(
    {k: np.concatenate([one[k] for one in parts]) for k in parts[0]},
    loads,
    np.flatnonzero(~clean.mask).tolist(),
    attacked / seconds if attacked else None,
    falls,
    warnings,
    shown,
  )


def _easier(columns: Columns) -> int:
  """Images that are right under the attack and wrong without it."""
  before, after = (
    is_right(columns[f'prediction_{when}'], columns['label'])
    for when in ('before', 'after')
  )
  return int((after & ~before).sum())


class _Clock:
  """When it is time to save, as the first process has it."""

  def __init__(self, every: float):
    self._every, self._last = every, time.monotonic()

  def __call__(self) -> bool:
    due = agreed(time.monotonic() - self._last >= self._every)
    if due:
      self._last = time.monotonic()
    return due


def _begin(programs, rows, clean, eps, unfinished, keeper, folder) -> Work:
  """A radius from its start, or from where it was cut short."""
  found = unfinished.get(eps_name(eps))
  group = programs.target.together
  if found is None:
    radius, places, shown = Radius(eps, clean, group), None, {}
  else:
    radius = Radius.read(found, clean, group)
    places = {k: v for k, v in found.items() if k.startswith('x_adv_')}
    shown = _pictures(found)
  if folder is not None:
    image = rows(np.zeros(1, np.int32))['image']
    keeper = Archive(folder, image.shape[1:], len(rows), places)
  return Work(radius, rows, keeper, shown)


def _save(work: Work, unfinished: Unfinished, name: str):
  """Stores what there is to go on from."""
  if work.keeper is not None:
    work.keeper.flush()
    together('kept')  # on all processes, before the first says so
  unfinished.put(name, _all(work))


def _all(work: Work) -> Columns:
  """Everything that is known of a radius, as arrays that change no more."""
  out = work.radius.arrays()
  if work.keeper is not None:
    out |= {k: v.copy() for k, v in work.keeper.columns().items()}
  if work.shown:
    numbers = sorted(work.shown)
    out['shown'] = np.array(numbers)
    out['shown_x_adv'] = np.stack([work.shown[i] for i in numbers])
  return out


def _pictures(found: Columns) -> dict[int, np.ndarray]:
  if 'shown' not in found:
    return {}
  return dict(zip(found['shown'].tolist(), found['shown_x_adv'], strict=True))


def _read(found: Columns, clean: Clean, eps: float):
  """Columns of the examples that count, sums over them, and what happened."""
  radius = Radius.read(found, clean, 1)
  index = np.flatnonzero(clean.mask)
  columns = {
    'index': index,
    'label': clean.label[index],
    'eps': np.full(len(index), eps),
    'fallen_in': radius.fallen[index],
    **{k: v[index] for k, v in clean.columns.items()},
    **{k: v[index] for k, v in found.items() if k.startswith('x_adv_')},
  }
  sums = {}
  for name, column in radius.columns.items():
    if column.ndim == 1:
      columns[name] = column[index]
    else:
      sums[name] = column[index].sum(0)
  stands = radius.fallen == STANDS
  blind = {k: int((v & stands).sum()) for k, v in radius.blind.items()}
  fall = Fall(eps, radius.robust_after, radius.seconds, blind)
  return columns, sums, fall, _pictures(found)


def _shown(rows, pictures, columns, folder) -> Shown:
  """Examples at a radius at which some fell."""
  pictures = {number: pictures[number] for number in sorted(pictures)}
  if folder is not None:
    pictures |= _standing(columns, folder, next(iter(pictures.values())).shape)
  index = np.array(list(pictures))
  images = np.asarray(rows(index)['image'])
  if images.dtype == np.uint8:
    images = images.astype(np.float32) / 255
  at = np.searchsorted(columns['index'], index)
  names = [columns[f'prediction_{when}'][at] for when in ('before', 'after')]
  x_adv, eps = np.stack(list(pictures.values())), float(columns['eps'][0])
  return Shown(eps, index, images, x_adv, *names)


def _standing(columns, folder, shape) -> dict[int, np.ndarray]:
  """x_adv of some images that stand, of those that this process kept."""
  stands = is_right(columns['prediction_after'], columns['label'])
  process, row = columns['x_adv_process'], columns['x_adv_row']
  stands &= (process == jax.process_index()) & (row >= 0)
  some = np.flatnonzero(stands)[:_MOST_STANDING]
  found = read(folder, process[some], row[some], shape)
  return dict(zip(columns['index'][some].tolist(), found, strict=True))
