"""`python -m vmoe_robust.rehearse --config=... --topology=v5p:4x4x4`."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vmoe_robust.config import UserError, command_line
from vmoe_robust.cost import compilation_cache
from vmoe_robust.files import local_path, write_json
from vmoe_robust.rehearse import rehearse, show

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'v4:2x2x1, v5e:4x4, v5p:4x4x4, v6e:16x16 or cpu:8.'
)
_SLICES = flags.DEFINE_integer('slices', 1, 'TPU slices of this topology.')
_EXAMPLES = flags.DEFINE_integer(
  'examples', 0, 'Images to attack; 0: those of config.data.eval_split.'
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  "JSON of the result; 'runs/rehearsals/CONFIG-TOPOLOGY.json' by default.",
)


def main(argv: list[str]) -> None:
  """Rehearses, shows and writes what was found."""
  config = command_line.load_run(_CONFIG, argv)
  if not _TOPOLOGY.value:
    raise UserError('--topology is missing; try v5e:4x4 or cpu:8')
  # Programs for devices that are not there can be written but not loaded.
  is_here = _TOPOLOGY.value.startswith('cpu:')
  compilation_cache.use(config.compilation_cache if is_here else '')
  say = lambda text: print(text, flush=True)
  found = rehearse(config, _TOPOLOGY.value, _SLICES.value, _EXAMPLES.value, say)
  changes = [a for a in sys.argv[1:] if a.startswith('--config.')]
  found = {'config': command_line.name(), 'changes': changes} | found
  out = local_path(_OUT.value or _default_out(), '--out')
  out.parent.mkdir(parents=True, exist_ok=True)
  write_json(out, found)
  print(f'\n{show(found)}\n\n{out}')


def _default_out() -> Path:
  pod = _TOPOLOGY.value.replace(':', '_')
  pod = f'{_SLICES.value}x{pod}' if _SLICES.value > 1 else pod
  return Path('runs', 'rehearsals', f'{command_line.name()}-{pod}.json')


if __name__ == '__main__':
  command_line.run(main)
