"""`python -m vmoe_robust.main --config=configs/digits_moe.py`."""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vmoe_robust.config import UserError, choose
from vmoe_robust.evaluate import attack
from vmoe_robust.train import loop

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Where everything goes; 'runs/CONFIG' by default."
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other hosts of a pod or cluster.'
)


def main(argv: list[str]):
  """Does what the configuration says."""
  if len(argv) > 1:
    raise UserError(f'{argv[1]!r} is no flag; write --config.FIELD=VALUE')
  config = _CONFIG.value
  if config is None:
    raise UserError('--config names no file; try configs/digits_moe.py')
  try:
    mode = config.mode
  except OSError as error:  # it is read only now
    reason = str(error).splitlines()[-1].strip()
    raise UserError(f'--config cannot be loaded: {reason}') from error
  logging.set_verbosity(logging.WARNING)
  # Orbax warns of what is meant, such as reading without writing.
  logging.get_absl_handler().addFilter(
    lambda record: 'orbax' not in record.pathname
  )
  if _DISTRIBUTED.value:
    _join()
  modes = {'train': loop.run, 'attack': attack.run}
  run_mode = modes[choose('config.mode', mode, modes)]
  run_mode(config, _WORKDIR.value or _default_workdir(config))


def _join():
  # JAX finds its place on a TPU pod, in SLURM and under MPI by itself. Where
  # it cannot, JAX_COORDINATOR_ADDRESS, which it reads, and these two say.
  place = {
    'num_processes': os.environ.get('JAX_NUM_PROCESSES'),
    'process_id': os.environ.get('JAX_PROCESS_ID'),
  }
  place = {name: int(value) for name, value in place.items() if value}
  try:
    jax.distributed.initialize(**place)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f'--distributed cannot join the other hosts: {error}; outside of a TPU '
      'pod, SLURM and MPI set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and '
      'JAX_PROCESS_ID'
    ) from error


def _default_workdir(config) -> str:
  name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
  if config.mode == 'attack':
    path = Path(config.checkpoint).absolute()
    if path.parent.name == 'checkpoints':
      name += f'-{path.parents[1].name}'
    name += f'-{path.name}'
  return str(Path('runs', name))


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:  # of a field that is not there
    hint = str(error).replace('\\n', ' ').replace("\\'", "'").strip('"\'')
    raise UserError(f'a --config override names no field: {hint}') from error
  except (flags.Error, OSError, TypeError, ValueError) as error:
    raise UserError(str(error)) from error


def run():
  """The program; what the user can mend is one line and exit code 1."""
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  run()
