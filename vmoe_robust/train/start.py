"""What is settled before anything is built: fields, and which run it is."""

import json
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import read_config
from vmoe_robust.config import UserError, differences
from vmoe_robust.data import Source
from vmoe_robust.evaluate import outcome

# Fields that may change between two starts in one work directory: they alter
# neither the model nor what it learns from each step.
_FREE = (
  'config.mesh.',
  'config.save.',
  'config.eval.',
  'config.attack.',
  'config.train.log_every',
  'config.train.remat',
  'config.data.dir',
  'config.data.threads',
  'config.data.workers',
  'config.data.prefetch',
)


def resolve(config: ConfigDict, source: Source) -> ConfigDict:
  """Fills in what the data decide.

  Raises:
    UserError: the model was told otherwise.
  """
  config = config.copy_and_resolve_references()
  for name in ('num_classes', 'channels'):
    there = getattr(source, name)
    if config.model[name] not in (0, there):
      raise UserError(
        f'config.model.{name}={config.model[name]} does not fit '
        f'config.data.name={config.data.name!r}, which has {there}; use {there}'
      )
    config.model[name] = there
  for name in ('mean', 'std'):
    if len(config.model[name]) not in (1, source.channels):
      raise UserError(
        f'config.model.{name}={config.model[name]} is not one number, nor one '
        f'for each of the {source.channels} channels of '
        f'config.data.name={config.data.name!r}'
      )
  fit = 'sigmoid' if source.multi_label else 'softmax'
  if config.train.loss != fit:
    several = 'several labels' if source.multi_label else 'one label'
    raise UserError(
      f'config.train.loss={config.train.loss!r} does not fit '
      f'config.data.name={config.data.name!r}, which has {several} an image; '
      f'use {fit!r}'
    )
  return config


def check_same_run(config: ConfigDict, workdir: str | os.PathLike):
  """Refuses a work directory in which another run was started."""
  saved = read_config(workdir)
  if saved is None:
    return
  changed = [d for d in differences(config, saved) if not d.startswith(_FREE)]
  if changed:
    raise UserError(
      f'--workdir={workdir} has a run with other settings, not '
      f'{"; ".join(changed[:5])}; choose another --workdir, or set the fields '
      'back to resume'
    )


def is_finished(config: ConfigDict, workdir: str | os.PathLike) -> bool:
  """Whether the run is over; if so, says so and shows its table."""
  path = Path(workdir) / outcome.RESULTS
  if not path.exists():
    return False
  results = json.loads(path.read_text())
  if results['step'] < config.train.steps:
    return False  # of an attack while training
  if jax.process_index() == 0:
    print(f'{workdir} is finished:\n\n{outcome.closing(results, workdir)}')
  return True
