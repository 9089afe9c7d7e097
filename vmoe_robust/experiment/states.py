"""How far each part of an experiment is, by what is in its folder."""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence

from etils import epath
from ml_collections import ConfigDict

from vmoe_robust import files
from vmoe_robust.checkpoint import open_weights, read_config
from vmoe_robust.checkpoint.writer import is_unmeasured, steps
from vmoe_robust.config import UserError, differences, machine_fields, unread
from vmoe_robust.evaluate import job
from vmoe_robust.evaluate.classifier import origin
from vmoe_robust.evaluate.combine import combine, combine_saved
from vmoe_robust.evaluate.finished import changes, ends_training
from vmoe_robust.experiment.parts import Part
from vmoe_robust.report.results import DAMAGE, RESULTS, read_results

FINISHED, CUT_SHORT, FAILED = 'finished', 'cut short', 'failed'
NOT_STARTED, CHANGED, WAITING = 'not started', 'changed', 'waiting'
# In a part's folder, beside what the run itself leaves.
LOG, FAILURE = 'log.txt', 'failed.json'
# By their checksum weights are the same wherever the folder is now.
_ELSEWHERE = ('config.checkpoint',)


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


def states(
  parts: Sequence[Part], nothing_runs: bool = False
) -> dict[str, State]:
  """The state of each part by name, from the disk alone.

  A training whose checkpoints were deleted is finished if its results and those
  of every part that needed them are there, all of the same weights; else it has
  to be done again.

  Args:
    parts: of the experiment.
    nothing_runs: a training that would have to be done again is not, so that
      what was found with its weights still counts.
  """
  found: dict[str, State] = {}
  examples = _Examples()
  spent = _spent(parts, nothing_runs, examples)
  for part in parts:
    needed = found.get(part.needs)
    found[part.name] = spent.get(part.name) or look(part, needed, examples)
  return found


class _Examples:
  """The fingerprints of what is judged, each split of data opened once."""

  def __init__(self):
    self._known: dict[str, str | None] = {}

  def __call__(self, config: ConfigDict) -> str | None:
    key = config.data.to_json()
    if key not in self._known:
      self._known[key] = job.examples_now(config)
    return self._known[key]


def _spent(
  parts: Sequence[Part], nothing_runs: bool, examples
) -> dict[str, State]:
  """Finished trainings whose checkpoints were deleted, and what needed them.

  Of these some may be damaged: training again would not mend the others.
  """
  needing = collections.defaultdict(list)
  for part in parts:
    needing[part.needs].append(part)
  spent: dict[str, State] = {}
  for training in sorted(parts, key=lambda part: -part.stage):
    if training.mode != 'train' or steps(_checkpoints(training)):
      continue
    users = {part.name: part for part in needing[training.name]}
    left = [part for name, part in users.items() if name not in spent]
    if training.config.attack.at_end:
      left.append(training)
    judged, damaged = {}, {}
    for part in left:
      try:
        judged[part.name] = _judged_weights(part, training, examples)
      except DAMAGE as error:
        damaged[part.name] = _failed(part, error)
    if len({weights for weights in judged.values() if weights}) > 1:
      continue
    known = (users or left) and (judged or not left)  # not all are damaged
    if known and None not in judged.values():
      done = dict.fromkeys((training.name, *users), State(FINISHED))
      spent = done | damaged | spent
    elif nothing_runs:
      there = [name for name, weights in judged.items() if weights is not None]
      spent = dict.fromkeys(there, State(FINISHED)) | damaged | spent
  return spent


def _judged_weights(part: Part, training: Part, examples) -> str | None:
  """The checksum of the weights that a finished part judged.

  Returns:
    The checksum, '' where there is none to compare, or None if the part is not
    finished.
  """
  saved = read_config(training.folder)
  if saved is None or _changes(training, saved):
    return None
  if part.mode == 'train' and part is not training:  # it started from this one
    return '' if _training(part).name == FINISHED else None
  if not (part.folder / RESULTS).exists():
    return None
  results, total = read_results(part.folder), training.config.train.steps
  if part is training:  # of the attack at its end
    finished = ends_training(results, total)
  else:
    asked = combine_saved(part.config, saved)
    finished = not changes(
      asked, results, total, None, _ELSEWHERE, lambda: examples(asked)
    )
  return (results['weights']['checksum'] or '') if finished else None


def waiting(part: Part) -> State:
  """Of a part whose turn does not come, because of the one that it needs."""
  return State(WAITING, f'for {part.needs}, which is not finished')


def look(
  part: Part,
  needed: State | None = None,
  examples: Callable[[ConfigDict], str | None] = lambda config: None,
) -> State:
  """The state of a part, from the disk alone.

  Args:
    part: of the experiment.
    needed: the state of the part that it needs, if it needs one.
    examples: finds the fingerprint of what a configuration judges, with which
      that of the results is compared; None: not compared.
  """
  if needed is not None and needed.name in (FAILED, CHANGED, WAITING):
    return waiting(part)
  try:
    if part.mode == 'train':
      state = _training(part)
    elif needed is not None and needed.name != FINISHED:
      state = State(NOT_STARTED)
    else:
      state = _judging(part, examples)
  except DAMAGE as error:
    return _failed(part, error)
  failure = part.folder / FAILURE
  if state.name != FINISHED and state.name != CHANGED and failure.exists():
    with contextlib.suppress(*DAMAGE):
      return State(FAILED, str(json.loads(failure.read_text())['error']))
  return state


def _failed(part: Part, error: Exception) -> State:
  if isinstance(error, UserError):
    return State(FAILED, str(error))
  return State(
    FAILED,
    f'{part.folder / RESULTS} is damaged ({error!r}); copy it again, or delete '
    'it and run again',
  )


def _checkpoints(training: Part) -> epath.Path:
  return files.path(training.folder) / 'checkpoints'


def _training(part: Part) -> State:
  done = steps(_checkpoints(part))
  total = part.config.train.steps
  if not done:
    return State(NOT_STARTED)
  saved = read_config(part.folder)
  if saved is not None and (changed := _changes(part, saved)):
    return _changed(part, changed)
  if done[-1] < total:
    return State(CUT_SHORT, f'step {done[-1]:,} of {total:,}')
  if is_unmeasured(_checkpoints(part), done[-1]):
    return State(CUT_SHORT, 'trained, not yet evaluated')
  if part.config.attack.at_end and not _has_results(part, total):
    return State(CUT_SHORT, 'trained, not yet attacked')
  return State(FINISHED)


def _changes(training: Part, saved: ConfigDict) -> list[str]:
  """In what the configuration of its run differs from the one asked for."""
  config = training.config
  ignore = [*machine_fields(config.data.name), *unread(config)]
  if not training.config.attack.at_end:
    ignore.append('config.attack.')
  if training.needs and _end(training.config) == _end(saved):
    ignore.append('config.init_from')  # wherever the folder is now
  ignore += [  # what the data decide
    f'config.model.{name}'
    for name in ('num_classes', 'channels')
    if not training.config.model[name]
  ]
  return differences(training.config, saved, tuple(ignore))


def _end(config: ConfigDict) -> tuple[str, ...]:
  """RUN_seedN/checkpoints/STEP of the weights that a run starts from."""
  return epath.Path(config.init_from).parts[-3:]


def _has_results(part: Part, step: int) -> bool:
  if not (part.folder / RESULTS).exists():
    return False
  return ends_training(read_results(part.folder), step)


def _judging(part: Part, examples) -> State:
  if not (part.folder / RESULTS).exists():
    begun = (part.folder / job.PROGRESS).exists()
    return State(CUT_SHORT if begun else NOT_STARTED)
  results = read_results(part.folder)
  where = open_weights(part.config.checkpoint, field='config.checkpoint')
  with contextlib.closing(where) as weights:
    asked = combine(part.config, weights)
    _, step, checksum = origin(weights)
  changed = changes(
    asked, results, step, checksum, _ELSEWHERE, lambda: examples(asked)
  )
  return _changed(part, changed) if changed else State(FINISHED)


def _changed(part: Part, changed: Sequence[str]) -> State:
  return State(
    CHANGED,
    f'{part.folder} has another configuration ({"; ".join(changed[:3])}); '
    'give the run another name, choose another --workdir, or move the folder',
  )
