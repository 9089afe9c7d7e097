"""How far each part of an experiment is, by what is in its folder."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence

from vmoe_robust import files
from vmoe_robust.checkpoint import open_weights, read_config
from vmoe_robust.checkpoint.writer import steps
from vmoe_robust.config import MACHINE_FIELDS, UserError, differences
from vmoe_robust.evaluate import job
from vmoe_robust.evaluate.classifier import origin
from vmoe_robust.evaluate.combine import combine
from vmoe_robust.experiment.parts import Part
from vmoe_robust.report.results import RESULTS, read_results

FINISHED, CUT_SHORT, FAILED = 'finished', 'cut short', 'failed'
NOT_STARTED, CHANGED, WAITING = 'not started', 'changed', 'waiting'
# In a part's folder, beside what the run itself leaves.
LOG, FAILURE = 'log.txt', 'failed.json'


@dataclasses.dataclass(frozen=True)
class State:
  """How far a part is.

  Attributes:
    name: 'finished', 'cut short' (the same command goes on), 'failed',
      'not started', 'changed' (its folder has another configuration's
      results), or 'waiting' (for a part that failed or changed).
    detail: what there is to say about it, a line or ''.
  """

  name: str
  detail: str = ''


def states(parts: Sequence[Part]) -> dict[str, State]:
  """The state of each part by name, from the disk alone."""
  found: dict[str, State] = {}
  for part in parts:
    found[part.name] = look(part, found.get(part.needs))
  return found


def waiting(part: Part) -> State:
  """Of a part whose turn does not come, because of the one that it needs."""
  return State(WAITING, f'for {part.needs}, which is not finished')


def look(part: Part, needed: State | None = None) -> State:
  """The state of a part, from the disk alone.

  Args:
    part: of the experiment.
    needed: the state of the part that it needs, if it needs one.
  """
  if needed is not None and needed.name in (FAILED, CHANGED, WAITING):
    return waiting(part)
  try:
    if part.mode == 'train':
      state = _training(part)
    elif needed is not None and needed.name != FINISHED:
      state = State(NOT_STARTED)
    else:
      state = _judging(part)
  except UserError as error:
    return State(FAILED, str(error))
  failure = part.folder / FAILURE
  if state.name != FINISHED and state.name != CHANGED and failure.exists():
    with contextlib.suppress(ValueError, OSError):
      return State(FAILED, json.loads(failure.read_text())['error'])
  return state


def _training(part: Part) -> State:
  done = steps(files.path(part.folder) / 'checkpoints')
  total = part.config.train.steps
  if not done:
    return State(NOT_STARTED)
  saved = read_config(part.folder)
  if saved is not None:
    ignore = [*MACHINE_FIELDS]
    if not part.config.attack.at_end:
      ignore.append('config.attack.')
    ignore += [  # what the data decide
      f'config.model.{name}'
      for name in ('num_classes', 'channels')
      if not part.config.model[name]
    ]
    if changed := differences(part.config, saved, tuple(ignore)):
      return _changed(part, changed)
  if done[-1] < total:
    return State(CUT_SHORT, f'step {done[-1]:,} of {total:,}')
  if part.config.attack.at_end and not _has_results(part, total):
    return State(CUT_SHORT, 'trained, not yet attacked')
  return State(FINISHED)


def _has_results(part: Part, step: int) -> bool:
  if not (part.folder / RESULTS).exists():
    return False
  return read_results(part.folder)['weights']['step'] == step


def _judging(part: Part) -> State:
  if not (part.folder / RESULTS).exists():
    begun = (part.folder / job.PROGRESS).exists()
    return State(CUT_SHORT if begun else NOT_STARTED)
  results = read_results(part.folder)
  with contextlib.closing(open_weights(part.config.checkpoint)) as weights:
    asked = combine(part.config, weights)
    _, step, checksum = origin(weights)
  # By their checksum the weights are the same wherever the folder is now.
  ignore = ('config.checkpoint',)
  if changed := job.changes(asked, results, step, checksum, ignore):
    return _changed(part, changed)
  return State(FINISHED)


def _changed(part: Part, changed: Sequence[str]) -> State:
  return State(
    CHANGED,
    f'{part.folder} has another configuration ({"; ".join(changed[:3])}); '
    'give the run another name, choose another --workdir, or move the folder',
  )
