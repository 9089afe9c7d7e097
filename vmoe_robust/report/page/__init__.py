"""The report: runs and studies as one HTML file that people send around."""

import dataclasses
import functools
import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vmoe_robust.config import UserError
from vmoe_robust.files import replacing
from vmoe_robust.report.page import (
  attacks,
  comparison,
  experiment,
  gallery,
  reproduce,
  seeds,
  studies,
  training,
  verdict,
)
from vmoe_robust.report.page.runs import Problems, Run, find

REPORT = 'report.html'
# Of an experiment of more runs the page has what they say together alone.
_MOST_RUNS = 16
# On the first screen; the others are folded away.
_MOST_WARNINGS = 4
# That the gallery shows at first; of more, those of the first run.
_MOST_EXAMPLES = 24
# Without images; and what a larger page is without.
_MOST_BYTES = 2_000_000
_LARGE = ('all_numbers', 'training', 'routing')


@dataclasses.dataclass(frozen=True)
class Report:
  """A page as a notebook shows it."""

  html: str
  problems: Sequence[str]  # a line for each thing that could not be read

  def _repr_html_(self) -> str:
    text = html.escape(self.html)
    style = 'width: 100%; height: 48rem; border: 0'
    return f'<iframe srcdoc="{text}" title="Report" style="{style}"></iframe>'


def compare(*paths: str | os.PathLike) -> Report:
  """The report of some runs, for a notebook: the last value of a cell.

  Args:
    *paths: as `write` takes them.

  Raises:
    UserError: no run could be read, or a list was given.
  """
  if not paths or not all(isinstance(p, str | os.PathLike) for p in paths):
    raise UserError(
      "compare takes folders of runs, one argument each: compare('runs/a', "
      "'runs/b'), or compare(*folders) of a list"
    )
  problems = Problems()
  page = _page(paths, problems)
  return Report(page, problems.lines)


def write(
  paths: Sequence[str | os.PathLike], out: str | os.PathLike
) -> list[str]:
  """Writes the report of some runs.

  Args:
    paths: folders of runs or studies, folders that have such, or their
      `results.json`.
    out: the HTML file: the old one or the new, never a part.

  Returns:
    A line for each thing that could not be read; the page shows them too.

  Raises:
    UserError: no run could be read, or `out` is no local path.
  """
  problems = Problems()
  page = _page(paths, problems)
  with replacing(out) as draft:
    draft.write_text(page, encoding='utf-8')
  return problems.lines


def _page(paths: Sequence[str | os.PathLike], problems: Problems) -> str:
  runs = find(paths, problems)
  if not runs:
    raise UserError('no run to report of: ' + '; '.join(problems.lines))
  experiments = experiment.experiments(paths, problems)
  for one in experiments:
    kept = [run for run in runs if not one.leaves_out(run)]
    if kept and len(kept) < len(runs):
      problems.add(
        f'{len(runs) - len(kept):,} runs in {one.folder} that are of no part '
        f'of the experiment {one.name}, as it was asked for last'
      )
      runs = kept
  # Experiments name the pairs and seeds that they compare.
  compared = len(experiments) < len(paths)
  return render(runs, problems, experiments, compared)


def render(
  runs: Sequence[Run],
  problems: Problems,
  experiments: Sequence[experiment.Experiment] = (),
  compared: bool = True,
) -> str:
  """The page, as HTML; `problems` gets what is left out of it.

  Args:
    runs: of which it is.
    problems: gets a line for each thing that is left out.
    experiments: that some of the runs are of.
    compared: whether all runs are compared with each other.
  """
  runs = [run for run in runs if _is_whole(run, problems)]
  shown = runs
  if len(runs) > _MOST_RUNS:
    shown = [r for r in runs if not any(e.has(r) for e in experiments)]
  parts = _parts(shown, problems, compared) | {
    'experiments': experiments,
    'warnings': _warnings(runs, problems),
  }
  page = _html(shown, problems, parts)
  images = gallery.size(parts['examples'])
  if len(page) - images > _MOST_BYTES:
    problems.add(
      f'the numbers of each single run, with which the page would have '
      f'{len(page) / 1e6:.1f} MB; its own {REPORT} has them'
    )
    page = _html(shown, problems, parts | dict.fromkeys(_LARGE, ()))
  return page


def _warnings(
  runs: Sequence[Run], problems: Problems
) -> list[tuple[str, list[str]]]:
  """Each warning, and the names of the runs that have it."""
  found: dict[str, list[str]] = {}
  for run in runs:
    own = problems.guard(
      f'the warnings of {run.name}',
      functools.partial(dict.fromkeys, run.results['warnings']),
    )
    for warning in own or ():
      found.setdefault(warning, []).append(run.name)
  return list(found.items())


def _parts(
  runs: Sequence[Run], problems: Problems, compared: bool
) -> dict[str, Any]:
  """What the template shows, by the names that it uses."""
  each = lambda name, make: [
    one
    for run in runs
    for one in problems.guard(
      f'{name} of {run.name}', functools.partial(make, [run])
    )
    or []
  ]
  whole = lambda name, make: problems.guard(name, lambda: make(runs)) or []
  of_seeds = functools.partial(seeds.seeds, problems=problems)
  return {
    'verdicts': verdict.verdicts(runs, problems),
    'accuracy': whole('robust accuracy', attacks.accuracy),
    'all_numbers': each('all numbers', attacks.all_numbers),
    'waterfalls': each('what broke the images', attacks.waterfalls),
    'training': each('training', training.training),
    'routing': each('routing', attacks.routing),
    'studies': each(
      'the study', functools.partial(studies.studies, problems=problems)
    ),
    'pairs': comparison.pairs(runs, problems) if compared else [],
    'seeds': whole('seeds', of_seeds) if compared else [],
    'differing': problems.guard('configs', lambda: comparison.differing(runs)),
    'examples': gallery.examples(runs, problems),
    'recipes': each('how to reproduce', reproduce.recipes),
  }


def _html(runs, problems: Problems, parts: Mapping[str, Any]) -> str:
  template = _environment().get_template('page.html')
  blocks = gallery.blocks(parts['examples'])
  return template.render(
    parts,
    runs=runs,
    filters=gallery.FILTERS,
    most_warnings=_MOST_WARNINGS,
    most_examples=_MOST_EXAMPLES,
    blocks=blocks,
    verdict_table=verdict.as_table(parts['verdicts']),
    chosen=gallery.chosen(blocks),
    problems=problems.lines,
    images=verdict.images,
    describe=verdict.describe,
  )


def _is_whole(run: Run, problems: Problems) -> bool:
  """Whether what every section needs is of the right form."""
  return (
    problems.guard(run.name, functools.partial(_require_form, run)) or False
  )


def _require_form(run: Run) -> bool:
  """Uses what sections use of all runs at once, so that damage is found here.

  Raises:
    LookupError, TypeError, ValueError: it is of another form.
  """
  results = run.results
  hash((run.id, run.mode, run.model, results['asked']['name']))
  verdict.describe(run), verdict.images(results)
  for row in results['rows']:
    hash(row['condition'])
  for about in results['files'].get('figures', ()):
    hash((about['name'], about['title'], about['data']))
  attacks.accuracy([run])
  verdict.verdicts([run], Problems())
  return isinstance(run.config, dict)


@functools.cache
def _environment() -> jinja2.Environment:
  return jinja2.Environment(
    loader=jinja2.PackageLoader('vmoe_robust.report.page', 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
