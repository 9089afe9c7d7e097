"""What is whole and what is damaged in a work directory."""

import contextlib
import dataclasses
import os

from vmoe_robust import files
from vmoe_robust.checkpoint import integrity
from vmoe_robust.checkpoint.workdir import config_is_whole, read_config
from vmoe_robust.checkpoint.writer import CONFIG, best_step, steps, unfinished
from vmoe_robust.config import UserError


@dataclasses.dataclass(frozen=True)
class State:
  """Of a checkpoint, or of the configuration."""

  name: str  # the step, or a file's or folder's name
  state: str  # 'good', 'damaged' or 'unfinished'
  bytes: int
  remarks: str = ''


def verify(where: str | os.PathLike) -> list[State]:
  """Reads every file of a work directory's checkpoints, or of one of them.

  Unfinished is what a run writes now, or wrote when it was killed; the next
  run removes it. What a run removes meanwhile is left out.

  Raises:
    UserError: there are no checkpoints.
  """
  path = files.absolute(where, 'path')
  if path.parent.name == 'checkpoints' and path.name.isdecimal():
    state = _state(path, '')
    if state is None:
      raise UserError(f'{path} does not exist; give a step that does')
    return [state]
  if path.name == 'checkpoints':
    path = path.parent
  saved = path / 'checkpoints'
  if not saved.exists():
    raise UserError(
      f'{path} has no checkpoints/ in it; give the --workdir of a training '
      'run, or WORKDIR/checkpoints/STEP'
    )
  whole, size = config_is_whole(path), 0
  if (path / CONFIG).exists():
    size = (path / CONFIG).stat().length
  found = [State(CONFIG, 'good' if whole else 'damaged', size)]
  name = read_config(path).save.best if whole else ''
  best, unknown = best_step(saved, name)
  remark = 'best of the others' if unknown else 'best'
  for step in steps(saved):
    found.append(_state(saved / str(step), remark * (step == best)))
  found = [state for state in found if state]
  if not steps(saved) and not unfinished(saved):
    raise UserError(
      f'{saved} is empty: the run ended before it saved; start it again'
    )
  return found + [State(p.name, 'unfinished', 0) for p in unfinished(saved)]


def show(states: list[State]) -> str:
  """A table of them."""
  rows = [('checkpoint', 'state', 'MB', '')]
  rows += [
    (s.name, s.state, f'{s.bytes / 1e6:,.1f}', s.remarks) for s in states
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    f'{name:<{widths[0]}}  {state:<{widths[1]}}  {size:>{widths[2]}}  {remarks}'
    for name, state, size, remarks in rows
  ]
  return '\n'.join(line.rstrip() for line in lines)


def _state(path, remarks: str) -> State | None:
  """None of a checkpoint that is gone: a run may remove it meanwhile."""
  bad, size = integrity.damage(path), 0
  with contextlib.suppress(FileNotFoundError):
    size = integrity.size(path)
  if not path.exists():
    return None
  return State(
    path.name,
    'damaged' if bad else 'good',
    size,
    ', '.join(filter(None, [remarks, integrity.listed(bad)])),
  )
