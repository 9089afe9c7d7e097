"""`config.mode = 'corrupt'`: accuracy under common corruptions.

The protocol of ImageNet-C (arXiv:1903.12261): each corruption at each severity,
over the whole split. Its mCE divides by AlexNet's errors; here errors are as
they are, and beside them what a corruption adds to the clean error.
"""

import os

import jax
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import CORRUPTIONS, batch_size
from vmoe_robust.data import Corruption, eval_batches, load_frost
from vmoe_robust.data.corruptions import CLEAN, SMALL
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate import judge
from vmoe_robust.evaluate.opened import Opened
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report.table import table
from vmoe_robust.robustness import measure
from vmoe_robust.robustness.target import as_floats


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Judges `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  if config.corrupt.frost_dir and 'frost' in config.corrupt.names:
    load_frost(config.corrupt.frost_dir)  # or fails, before work is done
  judge.run(config, workdir, predictions, summarise, closing)


def variants(config: ConfigDict) -> tuple[Corruption, ...]:
  """What every example is shown as: clean first, then `config.corrupt`."""
  corrupt = config.corrupt
  return (
    Corruption(),
    *(
      Corruption(name, severity, config.seed, corrupt.frost_dir)
      for name in corrupt.names
      for severity in corrupt.severities
    ),
  )


def predictions(here: Opened) -> tuple[judge.Columns, set[int]]:
  """A row for each variant and example, and the examples skipped."""
  config, shown = here.config, variants(here.config)
  predict = program(here.classifier.model)
  size = batch_size(config, 'corrupt')
  total = -(-len(here.source) * len(shown) // size)

  def batches(first):
    return eval_batches(
      config.data,
      here.source,
      batch_size=size,
      sharding=batch_sharding(here.classifier.mesh),
      corruptions=shown,
      first=first,
    )

  with judge.progress(total, 'corrupt', 'batch') as update:

    def find(number, batch):
      image = batch.pop('image')
      found = predict(here.classifier.params, image, batch['mask'])
      row = fetch(batch | {'prediction': found})
      update(number + 1, int(row['mask'].sum()))
      return row

    columns, corrupt = judge.rows_of(here, batches, find)
  variant = columns.pop('variant')
  columns['corruption'] = np.array([c.name for c in shown])[variant]
  columns['severity'] = np.array([c.severity for c in shown])[variant]
  return columns, corrupt


def program(model: Model):
  """A jitted `(params, uint8 images, mask) -> classes`, images alone."""

  def predict(params, images, mask):
    images = as_floats(images)
    logits, _ = model.apply(params, images, experts='dropless', mask=mask)
    return measure.classes(logits)

  return jax.jit(predict)


def summarise(columns: judge.Columns, config: ConfigDict) -> dict:
  """Accuracies, and means over severities and corruptions."""
  right = measure.is_right(columns['prediction'], columns['label'])
  clean = columns['corruption'] == CLEAN
  clean_error = float(1 - right[clean].mean())
  each = {}
  for name in config.corrupt.names:
    rows = columns['corruption'] == name
    accuracies = {
      str(s): float(right[rows & (columns['severity'] == s)].mean())
      for s in config.corrupt.severities
    }
    error = 1 - float(np.mean(list(accuracies.values())))
    each[name] = {
      'accuracy': accuracies,
      'mean_accuracy': 1 - error,
      'mean_error': error,
      'error_above_clean': error - clean_error,
    }
  mean = lambda names: float(np.mean([each[n]['mean_error'] for n in names]))
  drawn = 'frost' in each and not config.corrupt.frost_dir
  results = {
    'examples': int(clean.sum()),
    'clean_accuracy': 1 - clean_error,
    'mean_corruption_error': mean(each),
    'mean_corruption_error_above_clean': mean(each) - clean_error,
    'not_finite': int((columns['prediction'] < 0).sum()),
    'strengths_of': (
      'CIFAR-10-C' if config.data.image_size <= SMALL else 'ImageNet-C'
    ),
    'is_complete': set(each) == set(CORRUPTIONS)
    and set(config.corrupt.severities) == {1, 2, 3, 4, 5},
    'corruptions': each,
  }
  if 'frost' in each:
    results['frost'] = 'drawn' if drawn else 'photographs'
  if drawn and len(each) > 1:
    rest = [name for name in each if name != 'frost']
    results['mean_corruption_error_without_frost'] = mean(rest)
  return results


def closing(results: dict, workdir: str | os.PathLike) -> str:
  """Table and summary that end a run."""
  percent = lambda x: f'{100 * x:.1f}%'
  each = results['corruptions']
  severities = list(next(iter(each.values()))['accuracy'])
  rows = [[CLEAN, *['-'] * len(severities), percent(results['clean_accuracy'])]]
  for name, found in each.items():
    row = [percent(found['accuracy'][s]) for s in severities]
    rows.append([name, *row, percent(found['mean_accuracy'])])
  means = [
    percent(np.mean([found['accuracy'][s] for found in each.values()]))
    for s in severities
  ]
  error = results['mean_corruption_error']
  rows.append(['mean', *means, percent(1 - error)])
  lines = [table(['accuracy', *severities, 'mean'], rows), '']
  lines.append(
    f'mean corruption error {percent(error)}, '
    f'{100 * results["mean_corruption_error_above_clean"]:.1f} points above '
    f'clean; strengths of {results["strengths_of"]}'
  )
  if results.get('frost') == 'drawn':
    lines.append(
      'frost is drawn, not photographed: compare it with nothing published'
    )
  if results['not_finite']:
    lines.append(f'{results["not_finite"]} predictions are not finite: wrong')
  return '\n'.join([*lines, judge.footer(results, workdir)])
