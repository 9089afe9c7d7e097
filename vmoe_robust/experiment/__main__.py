"""`python -m vmoe_robust.experiment --config=configs/experiments/NAME.py`."""

import collections
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vmoe_robust.config import UserError, choose, command_line
from vmoe_robust.experiment import comparing
from vmoe_robust.experiment import states as states_lib
from vmoe_robust.experiment.accuracies import accuracies, attacked, studied
from vmoe_robust.experiment.description import FIELDS, checked
from vmoe_robust.experiment.figures import figures
from vmoe_robust.experiment.markdown import MARKDOWN, markdown
from vmoe_robust.experiment.measures import measures, relations
from vmoe_robust.experiment.parts import Part, parts
from vmoe_robust.experiment.running import Runner, cpus, hand_over
from vmoe_robust.experiment.states import FINISHED, State, states
from vmoe_robust.experiment.summary import (
  details,
  earlier,
  listing,
  summary,
)
from vmoe_robust.experiment.usage import of_each
from vmoe_robust.files import (
  local_path,
  locked,
  replacing,
  require_writable,
  write_json,
)
from vmoe_robust.report import page, writing
from vmoe_robust.report.findings import Figure
from vmoe_robust.report.page.experiment import COMPARISONS, SUMMARY
from vmoe_robust.report.terminal import put

_CONFIG = config_flags.DEFINE_config_file('config', help_string='What to do.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Where everything goes; 'runs/CONFIG' by default."
)
_LIST = flags.DEFINE_bool(
  'list', False, 'Show the parts, with --only the command of one; run none.'
)
_ONLY = flags.DEFINE_string(
  'only', None, 'Run this part alone: its number or its name.'
)
_REPORT = flags.DEFINE_bool(
  'report', False, 'Write the report of what is finished; run nothing.'
)
_JOBS = flags.DEFINE_integer(
  'jobs', 1, 'Parts that run at a time, each with its share of the CPUs.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'With --only, in each process of a pod or cluster.'
)


def main(argv: list[str]) -> None:
  """Runs, lists or spreads an experiment."""
  # The accelerator is the parts': this process must not take it.
  jax.config.update('jax_platforms', 'cpu')
  config = command_line.load(_CONFIG, argv)
  if _ONLY.value == '':
    raise UserError(
      "--only='' names no part; give its number or name, or leave it out"
    )
  if _ONLY.value and _JOBS.value > 1:
    raise UserError(
      f'--jobs={_JOBS.value} has no effect with --only={_ONLY.value}, which is '
      'one part; leave one of them out'
    )
  if _DISTRIBUTED.value and not _ONLY.value:
    raise UserError('--distributed is for one part; give --only=NUMBER')
  if _REPORT.value and (_ONLY.value or _LIST.value):
    raise UserError(
      '--report is of all parts and writes files; give it without --only and '
      '--list'
    )
  if not 1 <= _JOBS.value <= len(cpus()):
    raise UserError(
      f'--jobs={_JOBS.value} does not fit the {len(cpus())} CPUs that this '
      f'process may use; use 1 to {len(cpus())}'
    )
  workdir = _WORKDIR.value or os.path.join('runs', command_line.name())
  workdir = local_path(workdir, '--workdir')
  every = parts(config, workdir)
  one = _chosen(every, _ONLY.value) if _ONLY.value else None
  if _LIST.value and one:
    print(one.shown())
  elif _LIST.value:
    print(listing(every, states(every)))
  elif one:
    _run_one(one, states(every))
  else:
    with locked(workdir):
      require_writable(workdir)
      _run_all(checked(config), workdir, every)


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
  if _DISTRIBUTED.value:  # signals and the exit code are then the part's own
    hand_over(part)
    os.execv(sys.executable, [*part.command(), '--distributed'])
  runner = Runner([part], found, 1, _say)
  runner.run()
  _leave(runner, [part])


def _run_all(config: ConfigDict, workdir: Path, every: Sequence[Part]) -> None:
  asked = [flag for flag in sys.argv[1:] if not re.match('--?report', flag)]
  command = ['python', '-m', 'vmoe_robust.experiment', *asked]
  about = {'name': command_line.name(), 'command': shlex.join(command)}

  # Of what was finished before, until there are new ones.
  known = earlier(workdir, config, about['name'])
  if not known:  # of another experiment, whose folder this was
    write_json(workdir / COMPARISONS, [])

  def write_summary():
    found = summary(config, every, runner.states, of_each(every), **known)
    found = about | found
    try:
      write_json(workdir / SUMMARY, found)
    except OSError as error:  # the parts' own results are what counts
      _say(f'{SUMMARY} was not written: {error}')

  found = states(every, nothing_runs=_REPORT.value)
  runner = Runner(every, found, _JOBS.value, _say, write_summary)
  write_summary()
  if not _REPORT.value:
    runner.run()
  found, left_out = attacked(every, runner.states)
  rows = comparing.compare(config, every, runner.states, left_out)
  write_json(workdir / COMPARISONS, rows)
  means = accuracies(config, found)
  asked = {measure['study'] for measure in config.measures}
  of_studies, more = studied(every, runner.states, asked)
  for name, why in (left_out | more).items():
    _say(f'{name} is left out: {why}')
  measured = measures(config, of_studies, _say)
  related = relations(config, measured, means)
  drawn = figures(means, rows, measured, related)
  known = dict(accuracies=means, measures=measured, relations=related)
  known |= dict(figures=_drawn(workdir, drawn))
  write_summary()
  ended = runner.states
  took = of_each(every)
  page_text = markdown(
    about, every, ended, found, took, means, rows, measured, related
  )
  with replacing(workdir / MARKDOWN) as draft:
    draft.write_text(page_text, encoding='utf-8')
  if text := comparing.show(rows):
    print(f'\n{text}')
  if warned := sum(bool(results['warnings']) for _, results in found):
    print(f'\n{warned} of {len(found)} attacks warn: see {MARKDOWN}')
  written = [SUMMARY, COMPARISONS, MARKDOWN, *_reported(workdir)]
  print(f'\nwritten to {workdir}: {", ".join(written)}')
  _leave(runner, every)


def _drawn(workdir: Path, made: Sequence[Figure]) -> list[dict]:
  entries = [writing.entry(figure) for figure in made]
  for about, figure in zip(entries, made, strict=True):
    writing.draw(workdir, about, figure)
  return entries


def _reported(workdir: Path) -> list[str]:
  """Writes the page of what is finished; its name if that could be done."""
  try:
    left_out = page.write([workdir], workdir / page.REPORT)
  except Exception as error:  # of whatever kind: the numbers are there
    _say(f'{page.REPORT} was not written: {error}')
    return []
  for line in left_out:
    _say(f'{page.REPORT}: left out: {line}')
  return [page.REPORT]


def _leave(runner: Runner, every: Sequence[Part]) -> None:
  """Says what remains, and ends with the exit code for it."""
  found = runner.states
  counts = collections.Counter(found[part.name].name for part in every)
  print(', '.join(f'{count} {name}' for name, count in counts.items()))
  for line in details(every, found):
    print(line)
  if runner.stopped:
    raise KeyboardInterrupt
  if counts[FINISHED] < len(every) and not _REPORT.value:
    sys.exit(1)


def _say(text: str) -> None:
  put(sys.stdout, text + '\n')


if __name__ == '__main__':
  command_line.run(main, FIELDS)
