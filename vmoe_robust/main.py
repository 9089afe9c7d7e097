"""`python -m vmoe_robust.main --config=configs/digits_moe.py`."""

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vmoe_robust import mesh
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
  if _DISTRIBUTED.value:
    mesh.join()
  modes = {'train': loop.run, 'attack': attack.run}
  run_mode = modes[choose('config.mode', mode, modes)]
  run_mode(config, _WORKDIR.value or _default_workdir(config))


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
    words = re.findall(r'[\w?]+', str(error).replace('\\n', ' '))
    raise UserError(
      f'no such field in --config: {words[0]!r}. {" ".join(words[1:])}'
    ) from error
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
