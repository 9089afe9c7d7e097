"""A run's work directory: its configuration, and which checkpoint is meant."""

import contextlib
import os
from collections.abc import Sequence

from absl import logging

from vmoe_robust import files, staging
from vmoe_robust.checkpoint import integrity
from vmoe_robust.checkpoint.manager import Checkpoints
from vmoe_robust.checkpoint.writer import CONFIG, measured_steps, steps
from vmoe_robust.config import ConfigDict, UserError, from_json, to_json

# In the file of the configuration, beside its fields.
_CLASSES = 'class_names'


def save_config(
  workdir: str | os.PathLike,
  config: ConfigDict,
  class_names: Sequence[str] = (),
) -> None:
  """Writes the resolved configuration, with which evaluation needs no other.

  Checkpoints that are saved later have a copy.

  Args:
    workdir: of the run.
    config: of the run.
    class_names: of its data, in the order of the model's logits.
  """
  directory = files.path(workdir)
  draft = directory / (CONFIG + '.tmp')
  values = config.to_dict()
  if class_names:
    values[_CLASSES] = list(class_names)
  draft.write_text(integrity.to_json(values) + '\n')
  draft.replace(directory / CONFIG)


def read_config(workdir: str | os.PathLike) -> ConfigDict | None:
  """The configuration that `save_config` wrote; None if there is none.

  If it is damaged or lost, the newest checkpoint that has a copy gives it.

  Raises:
    UserError: it is damaged, and there is no copy.
  """
  found = _read(workdir)
  return found and found[0]


def read_class_names(workdir: str | os.PathLike) -> tuple[str, ...]:
  """The classes that `save_config` wrote, in the order of the model's logits.

  Empty if there are none, as in runs of versions that did not save them.

  Raises:
    UserError: the configuration is damaged, and there is no copy.
  """
  found = _read(workdir)
  return found[1] if found else ()


def _read(workdir) -> tuple[ConfigDict, tuple[str, ...]] | None:
  path = files.path(workdir) / CONFIG
  saved = staging.checkpoints(workdir)
  copies = [saved / str(step) / CONFIG for step in reversed(steps(saved))]
  for place in (path, *copies):
    found = _parse(place)
    if found is not None:
      if place != path:
        what = 'damaged' if path.exists() else 'lost'
        logging.warning('%s is %s; %s is taken instead', path, what, place)
      return found
  if not path.exists():
    return None
  raise UserError(
    f'{path} is not as it was written, and no checkpoint has a copy of it; '
    'restore it from a copy, or start again in another --workdir'
  )


def configs_by_which_measured(
  workdir: str | os.PathLike, name: str
) -> list[ConfigDict]:
  """The configurations of the checkpoints for which a metric is known."""
  saved = staging.checkpoints(workdir)
  of = (saved / str(step) / CONFIG for step in measured_steps(saved, name))
  return [found[0] for found in map(_parse, of) if found]


def config_is_whole(workdir: str | os.PathLike) -> bool:
  """Whether the configuration is there and as it was written."""
  return _parse(files.path(workdir) / CONFIG) is not None


def _parse(path) -> tuple[ConfigDict, tuple[str, ...]] | None:
  try:
    values = integrity.from_json(path.read_bytes())
  except (OSError, ValueError):
    return None
  names = tuple(values.pop(_CLASSES, ()))
  return from_json(to_json(ConfigDict(values))), names


def fingerprint(workdir: str | os.PathLike, step: int) -> str | None:
  """By which a checkpoint is known again; None if there is none."""
  saved = staging.checkpoints(workdir)
  if step not in steps(saved):
    return None
  return integrity.fingerprint(saved / str(step))


def locate(
  checkpoint: str | os.PathLike, field: str = 'config.checkpoint'
) -> tuple[str, int]:
  """The work directory and the step that `config.checkpoint` names.

  Args:
    checkpoint: a work directory (its newest whole step is taken),
      `WORKDIR/checkpoints/STEP`, or `WORKDIR/checkpoints/best` of a run with
      `config.save.best`.
    field: what the user set, for the errors.

  Raises:
    UserError: there is no such checkpoint, or the one named is damaged.
  """
  path, wanted = files.absolute(checkpoint, field), None
  if path.parent.name == 'checkpoints':
    if path.name.isdecimal() or path.name == 'best':
      path, wanted = path.parent.parent, path.name
  field = f'{field}={str(checkpoint)!r}'
  if not str(checkpoint):
    raise UserError(f'{field} names nothing; give the workdir of a run')
  if not path.exists():
    raise UserError(
      f'{field} does not exist; give the --workdir of a training run'
    )
  if not (path / 'checkpoints').exists() or read_config(path) is None:
    raise UserError(
      f'{field} holds no checkpoint (there is no {CONFIG} or no '
      'checkpoints/ in it); give the --workdir of a training run that has '
      'saved at least once'
    )
  with contextlib.closing(Checkpoints(path)) as checkpoints:
    return str(path), _step(checkpoints, wanted, field)


def _step(checkpoints: Checkpoints, wanted: str | None, field: str) -> int:
  there, where = checkpoints.steps(), checkpoints.path(0).parent
  if not there:
    raise UserError(f'{field}: there is no finished checkpoint in {where}')
  if wanted is None:
    step = checkpoints.newest_whole()
    if step is None:
      raise UserError(f'{field}: all checkpoints in {where} are damaged')
    return step
  if wanted == 'best':
    name = read_config(where.parent).save.best
    step = checkpoints.best(name)
    if step is None:
      raise UserError(
        f'{field}: no checkpoint has a measure to be the best by '
        f'(config.save.best was {name!r}); name one of the steps {there}'
      )
  else:
    step = int(wanted)
    if step not in there:
      raise UserError(f'{field}: in {where} there are steps {there}')
  if bad := checkpoints.damage(step):
    others = [other for other in there if other != step]
    way = f'name one of the steps {others}, or ' if others else ''
    raise UserError(
      f'{field} is damaged: {bad}; {way}move {checkpoints.path(step)} away and '
      'start its training again, which makes it anew'
    )
  return step
