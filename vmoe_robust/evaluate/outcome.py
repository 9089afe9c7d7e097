"""What an attack found, as files, numbers and a table."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from vmoe_robust.attacks import label
from vmoe_robust.config import eps_name
from vmoe_robust.evaluate import target
from vmoe_robust.files import write_json
from vmoe_robust.report import plots
from vmoe_robust.report.records import read_records, write_records
from vmoe_robust.report.results import RECORDS, RESULTS, environment
from vmoe_robust.report.table import table
from vmoe_robust.robustness.measure import NOT_FINITE, is_right
from vmoe_robust.robustness.sweep import Swept

CURVE, EXAMPLES = 'robustness.png', 'examples.png'


def write(
  workdir: str | os.PathLike,
  attacked: Swept,
  config: ConfigDict,
  about: dict,
  class_names: Sequence[str] = (),
) -> dict:
  """Writes the records, and the results computed from what was written.

  The first process writes; all return the same.

  Args:
    workdir: where `results.json` and `records.parquet` go.
    attacked: of `sweep.run`.
    config: the whole configuration.
    about: what else the results should say, such as the step.
    class_names: of the data, for the picture of examples.

  Returns:
    What is in `results.json`.
  """
  path, first = Path(workdir) / RECORDS, jax.process_index() == 0
  columns = attacked.columns
  order = np.lexsort((columns['index'], columns['eps']))
  columns = {name: column[order] for name, column in columns.items()}
  if first:
    write_records(path, columns)
    columns = read_records(path)
  attacked = dataclasses.replace(attacked, columns=columns)
  results = summarise(attacked, config)
  results |= about | {
    'records': str(path),
    'config': config.to_dict(),
    **environment(),
  }
  if first:
    write_json(Path(workdir) / RESULTS, results)
    plots.robustness(Path(workdir) / CURVE, results)
    if attacked.shown is not None:
      _draw(Path(workdir) / EXAMPLES, attacked.shown, class_names)
  return results


def _draw(path: Path, shown, names: Sequence[str]):
  name = lambda i: names[i] if 0 <= i < len(names) else f'class {i}'
  title = lambda i: 'not finite' if i == NOT_FINITE else name(i)
  titles = [
    (title(before), title(after))
    for before, after in zip(shown.before, shown.after, strict=True)
  ]
  plots.examples(path, shown.images, shown.x_adv, titles)


def summarise(attacked: Swept, config: ConfigDict) -> dict:
  """Means over the examples, for each eps."""
  attack, columns = config.attack, attacked.columns
  right = _is_right(columns, 'before')
  first = columns['eps'] == attack.eps[0]
  results = {
    'examples': int(first.sum()),
    'clean_accuracy': float(right[first].mean()),
    'clean_accuracy_interval': interval(right[first]),
    'clean_loss': float(columns['loss_before'][first].mean()),
  }
  if config.train.loss == 'sigmoid':
    results['clean_false_discovery_rate'] = 1 - results['clean_accuracy']
  sweep = {}
  for eps in attack.eps:
    rows = {k: v[columns['eps'] == eps] for k, v in columns.items()}
    sweep[eps_name(eps)] = _one(rows, attacked.loads.get(eps, {}), config, eps)
    if eps in attacked.falls:
      fall = attacked.falls[eps]
      sweep[eps_name(eps)] |= {
        'robust_after': fall.robust_after,
        'seconds': fall.seconds,
      }
  results['attacks'] = {f'{_name(attack)}_{attack.norm}': sweep}
  if attacked.warnings:
    results['warnings'] = attacked.warnings
  return results


def _name(attack: ConfigDict) -> str:
  """What ran: of AutoAttack with other lengths than its own, these too."""
  parts = tuple(attack.name.split('+'))
  return label(parts if len(parts) > 1 else attack.name, target.budget(attack))


def interval(right: np.ndarray) -> tuple[float, float]:
  """Wilson's 95% confidence interval of a share."""
  test = stats.binomtest(int(right.sum()), len(right))
  low, high = test.proportion_ci(method='wilson')
  return float(low), float(high)


def _one(rows, loads, config, eps: float) -> dict:
  right = _is_right(rows, 'after')
  mean = lambda name: float(rows[name].mean())
  out = {
    'eps': eps,
    'robust_accuracy': float(right.mean()),
    'robust_accuracy_interval': interval(right),
    'error_before': float(1 - _is_right(rows, 'before').mean()),
    'error_after': float(1 - right.mean()),
    'loss_before': mean('loss_before'),
    'loss_after': mean('loss_after'),
    'prediction_changes': float(
      (rows['prediction_before'] != rows['prediction_after']).mean()
    ),
    'largest_linf': float(rows['linf'].max()),
    'largest_l2': float(rows['l2'].max()),
    'largest_l1': float(rows['l1'].max()),
    'outside_ball': int((~rows['in_ball']).sum()),
    'outside_range': int((~rows['in_range']).sum()),
  }
  if config.attack.target:
    reached = rows['prediction_after'] == rows['target']
    out['target_reached'] = float(reached.mean())
  if config.train.loss == 'sigmoid':
    out['false_discovery_rate'] = out['error_after']
  blocks = [n.split('/')[1] for n in rows if n.startswith('routing_change/')]
  if blocks:
    out['routing'] = {
      block: {
        'change': mean(f'routing_change/{block}'),
        'change_after_capacity': mean(f'routing_change_kept/{block}'),
        'change_official': mean(f'routing_change_official/{block}'),
        'dropped_before': mean(f'dropped_before/{block}'),
        'dropped_after': mean(f'dropped_after/{block}'),
        **{
          f'load_{when}': (load := loads[f'load_{when}/{block}']).tolist()
          for when in ('before', 'after')
        },
        'largest_load_over_mean': float(load.max() / max(load.mean(), 1e-9)),
      }
      for block in blocks
    }
  return out


def render(results: dict) -> str:
  """The results as a table for people."""
  (name, sweep), *_ = results['attacks'].items()
  some = next(iter(sweep.values()))
  blocks = list(some.get('routing', {}))
  short = [block.replace('encoderblock_', 'block ') for block in blocks]
  headers = [f'{name} eps', 'accuracy', 'loss', 'changed']
  stages = list(some.get('robust_after', {}))
  stages = stages if len(stages) > 1 else []
  headers += [f'after {stage}' for stage in stages]
  headers += [f'routing {block}' for block in short]
  percent = lambda x: f'{100 * x:.1f}%'
  rows = [
    ['clean', percent(results['clean_accuracy'])]
    + [f'{results["clean_loss"]:.3f}', '-']
    + ['-'] * (len(stages) + len(blocks))
  ]
  for one in sweep.values():
    eps = one['eps']
    linf = name.endswith('linf')
    shown = f'{255 * eps:.3g}/255' if linf else f'{eps:.4g}'
    row = [shown, percent(one['robust_accuracy']), f'{one["loss_after"]:.3f}']
    row.append(percent(one['prediction_changes']))
    row += [percent(one['robust_after'][stage]) for stage in stages]
    row += [percent(one['routing'][block]['change']) for block in blocks]
    rows.append(row)
  return table(headers, rows)


def closing(results: dict, workdir: str | os.PathLike) -> str:
  """Table and summary that end a run."""
  lines = [render(results), '']
  rate = results['attacked_images_per_second']
  lines.append(
    f'{results["examples"]} examples of {results["split"]}, experts '
    f'{results["experts"]}, {rate:,.1f} images/s attacked'
  )
  if results.get('trained_images_per_second'):
    lines.append(
      f'trained {results["step"]} steps at '
      f'{results["trained_images_per_second"]:,.0f} images/s, '
      f'{results["parameters"]:,} parameters, '
      f'{results["flops_per_image"] / 1e6:,.2f} MFLOP/image forward'
    )
  lines += [f'warning: {text}' for text in results.get('warnings', ())]
  if results['corrupt_images']:
    count = len(results['corrupt_images'])
    lines.append(f'{count} corrupt image{"s" * (count > 1)} skipped')
  files = [RESULTS, RECORDS, CURVE]
  files += [EXAMPLES] if (Path(workdir) / EXAMPLES).exists() else []
  if results['config']['mode'] == 'train':
    files += ['checkpoints/', 'metrics.jsonl', 'tensorboard/']
  lines.append(f'written to {workdir}: {", ".join(files)}')
  return '\n'.join(lines)


def _is_right(rows, when: str):
  return is_right(rows[f'prediction_{when}'], rows['label'])
