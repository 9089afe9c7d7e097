"""What is settled before anything is built: fields, and which run it is."""

import os

from ml_collections import ConfigDict

from vmoe_robust import files
from vmoe_robust.checkpoint import read_config
from vmoe_robust.checkpoint.writer import steps
from vmoe_robust.config import MACHINE_FIELDS, UserError, differences
from vmoe_robust.data import Source
from vmoe_robust.evaluate.fit import check_fit

# Fields that may change when a run resumes: they alter neither the model nor
# what it learns from each step.
_FREE = (
  *MACHINE_FIELDS,
  *('config.attack.', 'config.eval.', 'config.checkpoint'),
  *('config.data.eval_split', 'config.data.on_corrupt'),
)


def resolve(config: ConfigDict, source: Source, held_out: Source) -> ConfigDict:
  """Fills in what the data decide.

  Raises:
    UserError: the model was told otherwise.
  """
  config = config.copy_and_resolve_references()
  for name in ('num_classes', 'channels'):
    config.model[name] = config.model[name] or getattr(source, name)
  check_fit(config, source)
  check_fit(config, held_out)
  return config


def check_same_run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Refuses a work directory that has checkpoints of another run."""
  saved = read_config(workdir)
  if saved is None or not steps(files.path(workdir) / 'checkpoints'):
    return
  changed = differences(config, saved, _FREE)
  if changed:
    raise UserError(
      f'--workdir={workdir} has a run with other settings, not '
      f'{"; ".join(changed[:5])}; choose another --workdir, or set the fields '
      'back to resume'
    )
