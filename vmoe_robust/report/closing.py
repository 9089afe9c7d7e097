"""The text that ends a run."""

import os
from collections.abc import Callable
from pathlib import Path

from vmoe_robust import staging
from vmoe_robust.report.page import REPORT
from vmoe_robust.report.results import RESULTS

# `results` to the table of a mode and the lines below it.
Render = Callable[[dict], str]


def closing(results: dict, workdir: str | os.PathLike, render: Render) -> str:
  """The text that ends a run, from what is in `results.json` alone."""
  data, weights, files = (results[n] for n in ('data', 'weights', 'files'))
  step = '' if weights['step'] is None else f'step {weights["step"]} of '
  judged = (
    f'{data["examples"]} examples of {data["name"]} {data["split"]}, {step}'
    f'{weights["checkpoint"]}, experts {results["asked"]["experts"]}'
  )
  if weights['checkpoint'] is None:
    judged = f'{data["examples"]} examples, drawn for this; no checkpoint'
  lines = [render(results), judged]
  lines += [f'warning: {text}' for text in results['warnings']]
  if count := data['skipped']['count']:
    lines.append(
      f'{count} image{"s" * (count > 1)} skipped, which cannot be read or have '
      'no class'
    )
  names = [RESULTS, files['records']['name']]
  names += [f['picture'] for f in files['figures'] if f['picture']]
  if results['asked']['mode'] == 'train':
    names += ['checkpoints/', 'metrics.jsonl', 'tensorboard/']
  if (Path(workdir) / REPORT).exists():
    names.append(REPORT)
  lines.append(f'written to {staging.name(workdir)}: {", ".join(names)}')
  return '\n'.join(lines)
