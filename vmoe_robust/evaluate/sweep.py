"""An ensemble over a sweep of radii, which may be cut short and goes on."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from vmoe_robust.config import eps_name
from vmoe_robust.distributed import together
from vmoe_robust.evaluate import warn
from vmoe_robust.evaluate.ensemble import Rows, Runner
from vmoe_robust.evaluate.fall import Fall
from vmoe_robust.evaluate.snapshot import Snapshots, claim
from vmoe_robust.files import replacing, to_json

_DONE = 'done.npz'
WHEN = ('before', 'after')
_MOST_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Shown:
  """Examples for people to look at."""

  images: np.ndarray
  x_adv: np.ndarray
  before: np.ndarray  # predictions
  after: np.ndarray


@dataclasses.dataclass(frozen=True)
class Swept:
  """What an ensemble did at each radius."""

  columns: dict[str, np.ndarray]  # a row an example and eps
  loads: dict[float, dict[str, np.ndarray]]  # of each eps, sums over examples
  corrupt: list[int]  # examples that were skipped
  images_per_second: float  # attacked by this process, all attacks together
  falls: dict[float, Fall]
  warnings: list[str]
  shown: Shown | None


def run(
  runner: Runner,
  rows: Rows,
  radii: tuple[float, ...],
  *,
  shape: tuple[int, int, int],
  identity: dict,
  folder: str | os.PathLike | None = None,
  keep_images: bool = False,
  on_progress: Callable[[str, int, int, int], None] = lambda *_: None,
) -> Swept:
  """Attacks all examples at each radius.

  Args:
    runner: of the model and the ensemble.
    rows: the examples.
    radii: in units of pixels in [0, 1].
    shape: of an image.
    identity: what the attack is, by which a folder is known again.
    folder: where an attack that is cut short leaves what it has; deleted by
      the caller. None: nowhere.
    keep_images: add x_adv to the columns.
    on_progress: see `Runner.attack`.

  Raises:
    RuntimeError: an x_adv left its ball or [0, 1], so that its numbers mean
      nothing.
    UserError: images change each other's predictions, or the folder has the
      beginning of another attack.
  """
  evaluator, params = runner.evaluator, runner.victim.params
  warnings = [*runner.ensemble.notes, *evaluator.warnings(params, rows)]
  if folder is not None:
    claim(folder, identity)
  clean, seconds = evaluator.clean(params, rows), 0.0
  parts, loads, falls, shown = [], {}, {}, None
  for eps in radii:
    place = None if folder is None else pathlib.Path(folder, eps_name(eps))
    snapshots = Snapshots(place, runner.layout)
    x_adv = snapshots.x_adv((len(rows), *shape))
    found = _read(place)
    if found is None:
      begun = time.perf_counter()
      _untouched(rows, x_adv, runner.batch, place)
      fall = runner.attack(rows, clean, eps, snapshots, x_adv, on_progress)
      seconds += time.perf_counter() - begun
      together('attacked')
      if place is not None:  # with what other processes wrote
        x_adv = snapshots.x_adv((len(rows), *shape))
      found = (*evaluator.judge(params, rows, x_adv, eps), fall)
      _require_bounds(found[0], eps)
      _write(place, found)
    columns, sums, fall = found
    columns = columns | {'eps': np.full(len(columns['index']), eps)}
    columns['fallen_in'] = fall.fallen[columns['index']]
    if keep_images:
      columns['x_adv'] = x_adv[columns['index']].reshape(
        len(columns['index']), -1
      )
    nan = int(columns.pop('nan_after', np.zeros(1)).sum())
    columns.pop('nan_before', None)
    warnings += [
      f'eps {eps_name(eps)}: {text}'
      for text in warn.after(fall.robust_after, nan)
    ]
    parts.append(columns)
    shown = _shown(rows, x_adv, columns, shown)
    loads[eps], falls[eps] = sums, fall
  return Swept(
    {k: np.concatenate([one[k] for one in parts]) for k in parts[0]},
    loads,
    np.flatnonzero(~clean.mask).tolist(),
    len(rows) * len(radii) / max(seconds, 1e-9),
    falls,
    warnings,
    shown,
  )


def _shown(rows, x_adv, columns, before: Shown | None) -> Shown | None:
  """Some that fell, at the least radius that has any."""
  if before is not None:
    return before
  right = [columns[f'prediction_{w}'] == columns['label'] for w in WHEN]
  fell = columns['index'][right[0] & ~right[1]][:_MOST_SHOWN]
  if not len(fell):
    return None
  images = _floats(rows(fell)['image'])
  at = np.isin(columns['index'], fell)
  names = [columns[f'prediction_{when}'][at] for when in WHEN]
  return Shown(images, np.array(x_adv[fell]), *names)


def _floats(images):
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 255
  return images


def _untouched(rows, x_adv, batch, place):
  """x_adv of what is not attacked is the image itself."""
  marker = None if place is None else place / 'images'
  if marker and marker.exists():
    return
  if jax.process_index() == 0:
    for begin in range(0, len(rows), batch):
      indices = np.arange(begin, min(begin + batch, len(rows)))
      x_adv[indices] = _floats(rows(indices)['image'])
    if marker:
      x_adv.flush()
      marker.touch()
  together('images')


def _require_bounds(columns: dict[str, np.ndarray], eps: float):
  for name in ('in_ball', 'in_range'):
    if not columns[name].all():
      where = columns['index'][~columns[name]].tolist()
      raise RuntimeError(
        f'x_adv of examples {where[:5]} is not {name} at eps={eps}'
      )


def _write(place, found):
  if place is None or jax.process_index():
    return
  columns, sums, fall = found
  about = dataclasses.asdict(fall) | {'fallen': None}
  with replacing(place / _DONE) as draft, draft.open('wb') as file:
    np.savez(
      file,
      fallen=fall.fallen,
      about=to_json(about),
      **{f'column {k}': v for k, v in columns.items()},
      **{f'sum {k}': v for k, v in sums.items()},
    )


def _read(place):
  if place is None or not (place / _DONE).exists():
    return None
  with np.load(place / _DONE) as file:
    got = dict(file)
  about = json.loads(str(got['about'])) | {'fallen': got['fallen']}
  part = lambda name: {
    k.removeprefix(name): v for k, v in got.items() if k.startswith(name)
  }
  return part('column '), part('sum '), Fall(**about)
