"""`config.study.name = 'corruptions'`: accuracy under common corruptions.

The protocol of ImageNet-C (arXiv:1903.12261): each corruption at each severity,
over the whole split. Its mCE divides by AlexNet's errors; here errors are as
they are, and beside them what a corruption adds to the clean error.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from vmoe_robust.config import CORRUPTIONS, batch_size
from vmoe_robust.data import Corruption, eval_batches, load_frost
from vmoe_robust.data.corruptions import CLEAN, SMALL
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate.batches import progress, rows_of
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import DIFFERENCE, SHARE, mean, rate
from vmoe_robust.report.table import percent, table
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import as_floats

# Panels of the figure, in the order of ImageNet-C's tables.
GROUPS = dict(
  zip(
    CORRUPTIONS,
    3 * ['noise'] + 4 * ['blur'] + 4 * ['weather'] + 4 * ['digital'],
    strict=True,
  )
)


def run(job: Job) -> Findings:
  """Accuracy under each corruption at each severity.

  Raises:
    UserError: no image, or no photograph of frost, could be read.
  """
  settings = job.config.study.corruptions
  if settings.frost_dir and 'frost' in settings.names:
    load_frost(settings.frost_dir)  # or fails, before work is done
  return findings(*predictions(job), job.config)


def variants(config: ConfigDict) -> tuple[Corruption, ...]:
  """What every example is shown as: clean first, then the corruptions."""
  settings = config.study.corruptions
  return (
    Corruption(),
    *(
      Corruption(name, severity, config.seed, settings.frost_dir)
      for name in settings.names
      for severity in settings.severities
    ),
  )


def predictions(job: Job) -> tuple[Columns, set[int]]:
  """A row for each variant and example, and the examples skipped."""
  config, shown = job.config, variants(job.config)
  predict = program(job.classifier.model)
  size = batch_size(config, 'study')
  total = -(-len(job.source) * len(shown) // size)

  def batches(first):
    return eval_batches(
      config.data,
      job.source,
      batch_size=size,
      sharding=batch_sharding(job.classifier.mesh),
      corruptions=shown,
      first=first,
    )

  with progress(total, 'corruptions', 'batch') as update:

    def find(number, batch):
      image = batch.pop('image')
      found = predict(job.classifier.params, image, batch['mask'])
      row = fetch(batch | {'prediction_after': found})
      update(number + 1, int(row['mask'].sum()))
      return row

    columns, skipped = rows_of(job, batches, find)
  return _with_conditions(columns, shown), skipped


def _with_conditions(columns: Columns, shown: Sequence[Corruption]) -> Columns:
  """Names what each row was shown as, and the clean image's prediction."""
  columns = dict(columns)
  variant, index = columns.pop('variant'), columns['index']
  named = lambda values: np.array(values)[variant]
  columns['corruption'] = named([c.name for c in shown])
  columns['severity'] = named([c.severity for c in shown])
  columns['condition'] = named([_condition(c) for c in shown])
  clean = variant == 0
  order = np.argsort(index[clean])
  place = order[np.searchsorted(index[clean], index, sorter=order)]
  columns['prediction_before'] = columns['prediction_after'][clean][place]
  return columns


def _condition(shown: Corruption) -> str:
  return CLEAN if shown.name == CLEAN else f'{shown.name} {shown.severity}'


def program(model: Model) -> Callable:
  """A jitted `(params, uint8 images, mask) -> classes`, images alone."""

  def predict(params, images, mask):
    images = as_floats(images)
    logits, _ = model.apply(params, images, experts='dropless', mask=mask)
    return classes(logits)

  return jax.jit(predict)


def findings(
  columns: Columns, skipped: set[int], config: ConfigDict
) -> Findings:
  """Accuracies, and means over severities and corruptions.

  Args:
    columns: of `predictions`.
    skipped: indices of the examples that could not be read.
    config: the whole configuration.
  """
  shown = variants(config)
  right = _right(columns, shown)
  rows = []
  for corruption in shown:
    name = _condition(corruption)
    here = columns['condition'] == name
    after = columns['prediction_after'][here]
    rows.append(
      {
        'condition': name,
        'corruption': corruption.name,
        'severity': corruption.severity,
        'accuracy': rate(right[name]),
        'prediction_changes': rate(columns['prediction_before'][here] != after),
        'not_finite': int((after < 0).sum()),
      }
    )
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary=_summary(right, rows, config),
    figures=[_figure(rows)],
    warnings=_warnings(config),
  )


def _right(
  columns: Columns, shown: Sequence[Corruption]
) -> dict[str, Bool[np.ndarray, 'images']]:
  """Whether each image is right under each condition, images by index."""
  right, found = is_right(columns['prediction_after'], columns['label']), {}
  for name in map(_condition, shown):
    here = columns['condition'] == name
    found[name] = right[here][np.argsort(columns['index'][here])]
  return found


def _summary(right: dict, rows: list[dict], config: ConfigDict) -> dict:
  settings = config.study.corruptions
  clean = 1.0 - right[CLEAN]
  error = {  # of each image, the mean over severities
    name: np.mean(
      [1.0 - right[f'{name} {s}'] for s in settings.severities], axis=0
    )
    for name in settings.names
  }
  of = lambda names: np.mean([error[name] for name in names], axis=0)
  summary = {
    'clean_accuracy': rate(right[CLEAN]),
    'mean_corruption_error': mean(of(error), SHARE),
    'mean_corruption_error_above_clean': mean(of(error) - clean, DIFFERENCE),
    'not_finite': sum(row['not_finite'] for row in rows),
    'strengths_of': (
      'CIFAR-10-C' if config.data.image_size <= SMALL else 'ImageNet-C'
    ),
    'is_complete': set(error) == set(CORRUPTIONS)
    and set(settings.severities) == {1, 2, 3, 4, 5},
    'corruptions': {
      name: {
        'mean_accuracy': mean(1 - each, SHARE),
        'mean_error': mean(each, SHARE),
        'error_above_clean': mean(each - clean, DIFFERENCE),
      }
      for name, each in error.items()
    },
  }
  if 'frost' in error:
    summary['frost'] = 'photographs' if settings.frost_dir else 'drawn'
  if _draws_frost(config) and len(error) > 1:
    rest = [name for name in error if name != 'frost']
    summary['mean_corruption_error_without_frost'] = mean(of(rest), SHARE)
  return summary


def _draws_frost(config: ConfigDict) -> bool:
  settings = config.study.corruptions
  return 'frost' in settings.names and not settings.frost_dir


def _warnings(config: ConfigDict) -> list[str]:
  frost = 'frost is drawn, not photographed: compare it with nothing published'
  return [frost] if _draws_frost(config) else []


def _figure(rows: list[dict]) -> LinePlot:
  clean, *rest = rows
  lines = []
  for name in dict.fromkeys(row['corruption'] for row in rest):
    here = [row for row in rest if row['corruption'] == name]
    here = [clean, *sorted(here, key=lambda row: row['severity'])]
    found = [row['accuracy'] for row in here]
    x = [row['severity'] for row in here]
    lines.append(Line.of(name, x, found, GROUPS[name]))
  n = clean['accuracy']['n']
  title = f'Common corruptions, {n:,} examples'
  return LinePlot(
    'corruptions', title, 'severity (0: clean)', 'accuracy', lines
  )


def render(results: dict) -> str:
  """The table of accuracies, and the means below it."""
  summary, (clean, *rest) = results['summary'], results['rows']
  names = list(summary['corruptions'])
  severities = list(dict.fromkeys(row['severity'] for row in rest))
  at = {
    (row['corruption'], row['severity']): row['accuracy']['value']
    for row in rest
  }
  shown = percent(clean['accuracy']['value'])
  lines = [[CLEAN, *['-'] * len(severities), shown]]
  for name in names:
    found = summary['corruptions'][name]['mean_accuracy']['value']
    lines.append(
      [name, *(percent(at[name, s]) for s in severities), percent(found)]
    )
  means = [np.mean([at[name, s] for name in names]) for s in severities]
  error = summary['mean_corruption_error']
  lines.append(['mean', *map(percent, means), percent(1 - error['value'])])
  above = summary['mean_corruption_error_above_clean']
  return '\n'.join(
    [
      table(['accuracy', *map(str, severities), 'mean'], lines),
      '',
      f'mean corruption error {percent(error["value"])}{_interval(error)}, '
      f'{100 * above["value"]:.1f} points{_interval(above)} above clean; '
      f'strengths of {summary["strengths_of"]}',
    ]
  )


def _interval(estimate: dict) -> str:
  if estimate['interval'] is None:
    return ''
  low, high = estimate['interval']
  return f' ({100 * low:.1f} to {100 * high:.1f})'
