"""The runs that a report is of, and what cannot be read of them."""

import dataclasses
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from vmoe_robust import files
from vmoe_robust.config import UserError
from vmoe_robust.report.results import (
  DAMAGE,
  RESULTS,
  Results,
  read_results,
)
from vmoe_robust.report.verdicts import require_agreement

METRICS = 'metrics.jsonl'
# How deep below a path runs are looked for, and what is never one.
_DEPTH = 4
_ASKED = ('attacks', 'studies')  # folders in a run's, of an experiment
NOT_RUNS = ('checkpoints', 'figures', 'profile', 'tensorboard')
NOT_RUNS += ('unfinished', 'x_adv')
_Made = TypeVar('_Made')


@dataclasses.dataclass(frozen=True)
class Run:
  """One run or study: its results, and what else is in its folder."""

  name: str  # unlike that of all others of the report
  results: Results

  @property
  def id(self) -> str:
    """As the name, of letters that an address may have; no two are alike."""
    plain = lambda c: c.isascii() and (c.isalnum() or c in '_-')
    return ''.join(c if plain(c) else f'.{ord(c):x}.' for c in self.name)

  @property
  def mode(self) -> str:
    """'train', 'attack' or 'study'."""
    return self.results['asked']['mode']

  @property
  def is_attack(self) -> bool:
    """Whether its rows are radii of an attack."""
    rows = self.results['rows']
    return bool(rows) and all('robust_accuracy' in row for row in rows)

  @property
  def is_sparse(self) -> bool:
    """Whether its model has sparse blocks."""
    model = (self.results['asked']['config'] or {}).get('model') or {}
    places = ('moe_blocks', 'moe_every', 'moe_last')
    return bool(model.get('experts')) and any(model.get(n) for n in places)

  @property
  def weights(self) -> tuple[object, ...]:
    """What tells the weights that were judged from others.

    Their checksum, wherever they are; else where they are; and of a function
    that came from no file the run itself, for nothing more is known of it.
    """
    weights = self.results['weights']
    if weights['checksum'] is not None:
      return (weights['checksum'],)
    if weights['checkpoint'] is not None:
      return weights['checkpoint'], weights['step']
    return (self.name,)

  @property
  def selected(self) -> int | None:
    """How many experts a token has, if the run asked for another number."""
    asked = self.results['asked']['config'] or {}
    return asked.get('num_selected') or None

  @property
  def model(self) -> tuple[object, ...]:
    """What tells the function that was judged from others.

    The same weights are another function with other numbers of experts a token,
    and with experts of limited capacity.
    """
    asked = self.results['asked']
    router = ((asked['config'] or {}).get('model') or {}).get('router') or {}
    # The router's is the number that was asked for, or else the trained one.
    selected = self.selected or router.get('selected')
    return *self.weights, selected, asked['experts']

  @functools.cached_property
  def config(self) -> dict[str, object]:
    """Every field of its configuration by its full name."""
    return flat(self.results['asked']['config'] or {}, 'config', '.')

  @functools.cached_property
  def metrics(self) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none where there is no such file.

    A line that was cut short, as by a full disk, is left out.
    """
    path = self.results.folder / METRICS
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
      try:
        found.append(json.loads(line))
      except ValueError:
        continue
    return [one for one in found if isinstance(one, dict) and 'step' in one]

  def file(self, name: str) -> epath.Path:
    """A file that `results.json` names.

    Raises:
      UserError: it is not in the folder of the run.
    """
    if os.path.isabs(name) or '..' in name.split('/') or '://' in name:
      raise UserError(f'{name!r} is outside the folder of {self.name}')
    return self.results.folder / name

  def figure(self, about: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of a figure, or its arrays by name.

    Raises:
      UserError: its file is missing, or outside the folder of the run.
    """
    try:
      content = self.file(about['data']).read_bytes()
    except FileNotFoundError as error:
      raise UserError(
        f'{about["data"]} is missing; copy the whole folder of the run'
      ) from error
    if about['data'].endswith('.npz'):
      with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)
    return json.loads(content)


@dataclasses.dataclass
class Problems:
  """A line for each thing that the report has to do without."""

  lines: list[str] = dataclasses.field(default_factory=list)

  def add(self, line: str) -> None:
    """Adds a line, once."""
    line = ' '.join(line.split())
    if line not in self.lines:
      self.lines.append(line)

  def guard(self, what: str, make: Callable[[], _Made]) -> _Made | None:
    """What `make` returns; None and a line where it meets a damaged file."""
    try:
      return make()
    except DAMAGE as error:
      said = str(error) if isinstance(error, UserError) else repr(error)
      self.add(f'{what}: {said}')
      return None


def find(paths: Sequence[str | os.PathLike], problems: Problems) -> list[Run]:
  """All runs at some paths, or below them.

  Args:
    paths: folders of runs, folders that have such, or files `results.json`.
    problems: gets a line for each path or run that cannot be read, and for each
      run whose numbers are contradicted by its records.
  """
  found: dict[str, Results] = {}
  for path in paths:
    try:
      _read(path, found, problems)
    except DAMAGE as error:
      problems.add(str(error))
  names = _names([results.folder for results in found.values()])
  runs = map(Run, names, found.values())
  return [
    run
    for run in runs
    if problems.guard(run.name, functools.partial(_agrees, run))
  ]


def flat(found: Mapping, prefix: str = '', by: str = '/') -> dict[str, object]:
  """Nested mappings as one, of which estimates stay whole."""
  out: dict[str, object] = {}
  for name, value in found.items():
    whole = f'{prefix}{by}{name}' if prefix else str(name)
    if isinstance(value, Mapping) and 'interval' not in value:
      out |= flat(value, whole, by)
    else:
      out[whole] = value
  return out


def _agrees(run: Run) -> bool:
  """With its records, as far as it has some."""
  if run.is_attack:
    require_agreement(run.results)
  return True


def _read(path, found: dict[str, Results], problems: Problems):
  top = files.path(path, 'path')
  if not top.is_dir():
    _add(read_results(path), found)
    return
  folders = [top] if (top / RESULTS).exists() else []
  folders += _below(top, _DEPTH)
  if not folders:
    problems.add(
      f'path={top} has no {RESULTS}, nor has a folder below it; give the '
      'folder of a finished run, or one that has such folders'
    )
  for folder in folders:
    try:
      _add(read_results(folder), found)
    except UserError as error:
      problems.add(str(error))


def _below(folder: epath.Path, depth: int) -> Iterator[epath.Path]:
  for inner in sorted(folder.iterdir(), key=_order):
    if inner.name in NOT_RUNS or not inner.is_dir():
      continue
    if (inner / RESULTS).exists():
      yield inner
    if depth > 1:
      yield from _below(inner, depth - 1)


def _order(path: epath.Path) -> list[tuple[int, str]]:
  """As people count: seed2 is before seed10."""
  parts = re.findall(r'\d+|\D+', path.name)
  return [(int(p) if p.isdecimal() else -1, p) for p in parts]


def _add(results: Results, found: dict[str, Results]):
  found[os.path.abspath(results.folder)] = results


def _names(folders: Sequence[epath.Path]) -> list[str]:
  """The shortest ends of the folders' paths that differ.

  Where all were asked the same of an experiment's runs, such as `attacks/pgd`,
  that is left out.
  """
  parts = [os.path.abspath(folder).split('/')[1:] for folder in folders]
  ends = {tuple(one[-2:]) for one in parts}
  if len(parts) > 1 and len(ends) == 1 and min(map(len, parts)) > 2:
    if next(iter(ends))[0] in _ASKED:
      parts = [one[:-2] for one in parts]
  shared = len(os.path.commonprefix([one[:-1] for one in parts]))
  parts = [one[shared:] for one in parts]
  longest = max(map(len, parts), default=1)
  for length in range(1, longest + 1):
    names = ['/'.join(one[-length:]) for one in parts]
    if len(set(names)) == len(names):
      return names
  return ['/'.join(one) for one in parts]
