"""`python -m vmoe_robust.experiment --config=configs/experiments/NAME.py`."""

import collections
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vmoe_robust.config import UserError, choose, command_line
from vmoe_robust.experiment import comparing, cost
from vmoe_robust.experiment import states as states_lib
from vmoe_robust.experiment.description import checked
from vmoe_robust.experiment.parts import Part, parts
from vmoe_robust.experiment.running import Runner, cpus
from vmoe_robust.experiment.states import FINISHED, State, states
from vmoe_robust.files import (
  local_path,
  locked,
  require_writable,
  write_json,
)
from vmoe_robust.report.table import table

# In the experiment's folder.
SUMMARY, COMPARISONS = 'experiment.json', 'comparisons.json'
FORMAT, VERSION = 'vmoe_robust experiment', 1

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Where everything goes; 'runs/CONFIG' by default."
)
_LIST = flags.DEFINE_bool('list', False, 'Show the parts, and run none.')
_ONLY = flags.DEFINE_string(
  'only', None, 'Run this part alone: its number or its name.'
)
_JOBS = flags.DEFINE_integer(
  'jobs', 1, 'Parts that run at a time, each with its share of the CPUs.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'With --only, on each host of a pod: all join the part.'
)


def main(argv: list[str]) -> None:
  """Runs, lists or spreads an experiment."""
  # The accelerator is the parts': this process must not take it.
  jax.config.update('jax_platforms', 'cpu')
  config = command_line.load(_CONFIG, argv)
  if _DISTRIBUTED.value and not _ONLY.value:
    raise UserError('--distributed is for one part; give --only=NUMBER')
  if not 1 <= _JOBS.value <= len(cpus()):
    raise UserError(
      f'--jobs={_JOBS.value} does not fit the {len(cpus())} CPUs that this '
      f'process may use; use 1 to {len(cpus())}'
    )
  workdir = _WORKDIR.value or os.path.join('runs', command_line.name())
  workdir = local_path(workdir, '--workdir')
  every = parts(config, workdir)
  if _LIST.value:
    print(listing(every, states(every)))
  elif _ONLY.value:
    _run_one(_chosen(every, _ONLY.value), states(every))
  else:
    require_writable(workdir)
    with locked(workdir):
      _run_all(checked(config), workdir, every)


def listing(every: Sequence[Part], found: Mapping[str, State]) -> str:
  """The parts as a table, and which of them can run at the same time."""
  lines = [
    [part.number, part.name, found[part.name].name, price]
    for part, price in zip(every, cost.costs(every), strict=True)
  ]
  headers = ('part', 'name', 'state', 'cost at most')
  stages = collections.defaultdict(list)
  for part in every:
    stages[part.stage].append(part.number)
  ranges = [f'{min(s)}-{max(s)}' for s in stages.values()]
  return '\n'.join(
    [
      table(headers, lines),
      *_details(every, found),
      'parts that can run at the same time, one group after the other: '
      + ', '.join(ranges),
    ]
  )


def _details(every: Sequence[Part], found: Mapping[str, State]) -> list[str]:
  return [
    f'{part.number} {part.name}: {found[part.name].name}: '
    f'{found[part.name].detail}'
    for part in every
    if found[part.name].detail
  ]


def _chosen(every: Sequence[Part], wanted: str) -> Part:
  if wanted.isdecimal():
    if not 1 <= int(wanted) <= len(every):
      raise UserError(
        f'--only={wanted} is no part; there are 1 to {len(every)}, which '
        '--list shows'
      )
    return every[int(wanted) - 1]
  name = choose('--only', wanted, [part.name for part in every])
  return next(part for part in every if part.name == name)


def _run_one(part: Part, found: Mapping[str, State]) -> None:
  state, needed = found[part.name], found.get(part.needs)
  if needed is not None and needed.name != FINISHED:
    raise UserError(
      f'--only={_ONLY.value}: {part.name} needs {part.needs}, which is '
      f'{needed.name}; run that first'
    )
  if state.name == states_lib.CHANGED:
    raise UserError(f'--only={_ONLY.value}: {state.detail}')
  if state.name == FINISHED:
    print(f'{part.number} {part.name} is finished: {part.folder}')
    return
  if _DISTRIBUTED.value:
    sys.exit(subprocess.run([*part.command(), '--distributed']).returncode)
  runner = Runner([part], found, 1, _say)
  runner.run()
  _leave(runner, [part])


def _run_all(config: ConfigDict, workdir: Path, every: Sequence[Part]) -> None:
  def write_summary():
    found = summary(config, every, runner.states, runner.seconds)
    try:
      write_json(workdir / SUMMARY, found)
    except OSError as error:  # the parts' own results are what counts
      _say(f'{SUMMARY} was not written: {error}')

  runner = Runner(every, states(every), _JOBS.value, _say, write_summary)
  runner.seconds = _seconds(workdir)

  write_summary()
  runner.run()
  rows = comparing.compare(config, every, runner.states)
  write_json(workdir / COMPARISONS, rows)
  write_summary()
  if text := comparing.show(rows):
    print(f'\n{text}')
  print(f'\nwritten to {workdir}: {SUMMARY}, {COMPARISONS}')
  _leave(runner, every)


def summary(
  config: ConfigDict,
  every: Sequence[Part],
  found: Mapping[str, State],
  seconds: Mapping[str, float],
) -> dict:
  """What experiment.json says: parts, states, folders and commands."""
  said = [
    {
      'number': part.number,
      'name': part.name,
      'mode': part.mode,
      'run': part.run,
      'asked': part.asked,
      'seed': part.seed,
      'folder': part.name,  # in this one's
      'needs': part.needs,
      'state': found[part.name].name,
      'detail': found[part.name].detail,
      'seconds': seconds.get(part.name),
      'command': shlex.join(['python', *part.command()[1:]]),
    }
    for part in every
  ]
  command = ['python', '-m', 'vmoe_robust.experiment', *sys.argv[1:]]
  return {
    'format': FORMAT,
    'format_version': VERSION,
    'name': command_line.name(),
    'command': shlex.join(command),
    'runs': [run['name'] for run in config.runs],
    'seeds': list(config.seeds),
    'comparisons': [list(pair) for pair in config.comparisons],
    'parts': said,
  }


def _seconds(workdir: Path) -> dict[str, float]:
  """What parts took so far, by name, of earlier calls."""
  try:
    found = json.loads((workdir / SUMMARY).read_text())['parts']
    return {p['name']: p['seconds'] for p in found if p['seconds']}
  except (OSError, ValueError, KeyError, TypeError):
    return {}


def _leave(runner: Runner, every: Sequence[Part]) -> None:
  """Says what remains, and ends with the exit code for it."""
  found = runner.states
  counts = collections.Counter(found[part.name].name for part in every)
  print(', '.join(f'{count} {name}' for name, count in counts.items()))
  for line in _details(every, found):
    print(line)
  if runner.stopped:
    raise KeyboardInterrupt
  if counts[FINISHED] < len(every):
    sys.exit(1)


def _say(text: str) -> None:
  print(text, flush=True)


if __name__ == '__main__':
  command_line.run(main)
