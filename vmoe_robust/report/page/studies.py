"""Studies as a page shows them: figures, how to read them, all numbers."""

import functools
from collections.abc import Mapping, Sequence

from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.shown import USUAL, Shown, of_figure
from vmoe_robust.report.page.tables import Table, of_rows, of_values

# How to read the figures of each study; docs/studies.md says more.
_READING = {
  'batch_dependence': 'A flip says that a prediction is not the image alone: '
  'then accuracy by capacity depends on how a test set is ordered.',
  'certificates': 'Share of images whose class provably holds within the '
  'radius, for the smoothed model, not for the model itself.',
  'corruptions': 'Accuracy under common corruptions by severity; severity 0 is '
  'clean. Bands are 95% intervals.',
  'frozen_routing': 'Solid lines are the model as it is, dashed ones have '
  'clean routing. Paired differences whose interval holds 0 show nothing.',
  'jacobian': 'A point is the norm of a term over that of the Jacobian, mean '
  'over images. Shares need not add up to 1, for terms are vectors.',
  'losses': 'Accuracy beside the share of choices that moved. A curve that is '
  'high in both is a change of routing that does not matter to the class.',
  'norm_union': 'The union is at most the lowest norm; the distance between '
  'the two is what norms break separately.',
  'routing_attacks': 'The dashed line is the first attack; a solid line below '
  'it would be an attack that it lacks.',
  'routing_change': '1 - IoU of the experts of a token, mean over tokens and '
  'then images. It does not say whether the change did any harm.',
  'substitution': 'Accuracy against the rank of the expert that runs; a flat '
  'line is a block whose experts can stand for each other. Compare conditions '
  'by against_unchanged, which counts the same images in pairs.',
  'theory': 'What the theory predicts beside what was found; see '
  'docs/theory.md. No checkpoint is involved.',
  'transfer': 'A row is where x_adv come from, a column is who sees them; the '
  "diagonal is each model's own robust accuracy.",
}


def studies(
  runs: Sequence[Run], problems: Problems
) -> list[tuple[Run, list[Shown], list[Table]]]:
  """Of each study: its figures and its numbers."""
  out = []
  for run in runs:
    if run.mode != 'study':
      continue
    shown = [
      problems.guard(
        f'figure {about.get("name")!r} of {run.name}',
        functools.partial(_of_file, run, about),
      )
      for about in run.results['files'].get('figures', ())
      if not str(about.get('data', '')).endswith('.npz')
    ]
    tables = [of_rows(f'All numbers of {run.name}', run.results['rows'])]
    if run.results['summary']:
      caption = f'Summary of {run.name}'
      tables.insert(0, of_values(caption, run.results['summary']))
    out.append((run, [one for one in shown if one is not None], tables))
  return out


def _of_file(run: Run, about: Mapping[str, str]) -> Shown:
  """A figure of a study, from its data file."""
  reading = _READING.get(run.results['asked']['name'], USUAL)
  return of_figure(run.figure(about), f'{run.name}: {about["title"]}', reading)
