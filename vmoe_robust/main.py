"""`python -m vmoe_robust.main --config=configs/digits_moe.py`."""

import contextlib
import signal
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vmoe_robust import files, mesh, staging
from vmoe_robust.config import UserError, choose, command_line
from vmoe_robust.cost import compilation_cache
from vmoe_robust.distributed import pod
from vmoe_robust.evaluate import attack
from vmoe_robust.evaluate.combine import refuse_unchanged
from vmoe_robust.report.results import revision
from vmoe_robust.studies import run as study
from vmoe_robust.train import loop

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Where everything goes; 'runs/CONFIG' by default."
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other hosts of a pod or cluster.'
)


def main(argv: list[str]) -> None:
  """Does what the configuration says."""
  config = command_line.load_run(_CONFIG, argv)
  if config.mode != 'train':
    refuse_unchanged(config, command_line.unchanged())
  workdir = _workdir(config)
  compilation_cache.use(config.compilation_cache)
  revision()
  modes = {
    'train': loop.run,
    'attack': attack.run,
    'study': study.run,
  }
  run_mode = modes[choose('config.mode', config.mode, modes)]
  with pod.together() if _DISTRIBUTED.value else contextlib.nullcontext():
    mesh.require_devices()
    if _DISTRIBUTED.value and config.mode != 'train':
      # JAX now catches SIGTERM, for a run to save; others have nothing to.
      signal.signal(signal.SIGTERM, signal.default_int_handler)
    with staging.staged(workdir) as folder:
      run_mode(config, folder)


def _workdir(config) -> str:
  """Where everything goes, refused before any work is done for it."""
  workdir = _WORKDIR.value or _default_workdir(config)
  if files.is_address(workdir) and config.attack.save_images:
    raise UserError(
      f'--workdir={workdir} is an address, and images are kept in folders '
      'alone; set config.attack.save_images=False, or give a folder'
    )
  return files.expanded(workdir, '--workdir')


def _default_workdir(config) -> str:
  name = command_line.name()
  if config.mode == 'study':  # one config file asks any of them
    name = 'studies' if config.study.names else config.study.name
  if config.mode != 'train' and config.checkpoint:
    path = Path(config.checkpoint).absolute()
    if path.parent.name == 'checkpoints':
      name += f'-{path.parents[1].name}'
    name += f'-{path.name}'
  return str(Path('runs', name))


if __name__ == '__main__':
  command_line.run(main)
