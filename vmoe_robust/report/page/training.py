"""Training as a page shows it: accuracy and loss over the steps."""

from collections.abc import Sequence
from typing import Any

from vmoe_robust.report.page.runs import Run
from vmoe_robust.report.page.shown import Shown, of_figure
from vmoe_robust.report.table import radius, some_of

_MOST_POINTS = 200  # of a curve
# Metrics of training by panel: name, label, whether of the batch of a step.
_CURVES = {
  'accuracy': (
    ('accuracy', 'batch', True),
    ('eval_accuracy', 'held out', False),
    ('adversarial_accuracy', 'batch, attacked', True),
  ),
  'cross entropy': (
    ('cross_entropy', 'batch', True),
    ('eval_loss', 'held out', False),
    ('adversarial_cross_entropy', 'batch, attacked', True),
  ),
}
_MONITOR = 'robust_accuracy/'  # a metric's name, before the radius


def training(runs: Sequence[Run]) -> list[Shown]:
  """Accuracy and loss over the steps of training."""
  out = []
  for run in runs:
    lines = [
      line
      for panel, curves in _CURVES.items()
      for line in _curves(run, panel, curves)
    ]
    if not lines:
      continue
    out.append(
      of_figure(
        {
          'title': run.name,
          'x_label': 'step',
          'y_label': 'value',
          'lines': lines,
          'unit': '',
        },
        f'Training of {run.name}',
        'Dashed lines are of the batch of one step, before it is learned from; '
        'solid ones of held-out images. A robust accuracy that falls while the '
        'clean one rises is catastrophic overfitting. At most '
        f'{_MOST_POINTS} points a line; metrics.jsonl has all.',
      )
    )
  return out


def _curves(run: Run, panel: str, curves) -> list[dict[str, Any]]:
  if panel == 'accuracy':
    found = (name for line in run.metrics for name in line)
    norm = str(run.config.get('config.attack.norm', ''))
    eps = lambda name: radius(norm, float(name.removeprefix(_MONITOR)))
    curves = [
      *curves,
      *(
        (name, f'held out, eps {eps(name)}', False)
        for name in dict.fromkeys(found)
        if name.startswith(_MONITOR)
      ),
    ]
  lines = []
  for name, label, of_batch in curves:
    points = [(m['step'], m[name]) for m in run.metrics if name in m]
    points = some_of(points, _MOST_POINTS)
    if points:
      x, y = zip(*points, strict=True)
      none = [None] * len(points)
      lines.append(
        {'label': label, 'x': x, 'y': y, 'low': none, 'high': none}
        | {'panel': panel, 'dashed': of_batch}
      )
  return lines
