"""`python -m vmoe_robust.main --config=configs/digits_moe.py`."""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vmoe_robust.config import UserError, validate

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Where everything goes; 'runs/CONFIG' by default."
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other hosts of a pod or cluster.'
)


def main(argv: list[str]):
  """Does what the configuration says."""
  del argv
  logging.set_verbosity(logging.WARNING)
  if _CONFIG.value is None:
    raise UserError('--config names no file; try --config=configs/digits_moe.py')
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  config = _CONFIG.value
  validate(config, jax.device_count())
  workdir = _WORKDIR.value or _default_workdir(config)
  if config.mode == 'attack':
    from vmoe_robust.evaluate import attack

    attack.run(config, workdir)
  else:
    from vmoe_robust.train import loop

    loop.run(config, workdir)


def _default_workdir(config) -> str:
  name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
  if config.mode == 'attack':
    name += '-' + Path(config.checkpoint).absolute().name
  return os.path.join('runs', name)


def run():
  """The program; an error of the user's is one line and exit code 2."""
  try:
    app.run(main)
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  run()
