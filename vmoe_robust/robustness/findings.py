"""What an attack found, as numbers, figures and a table."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vmoe_robust.report.examples import ExamplePictures
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Figure, Findings
from vmoe_robust.report.statistics import SHARE, mean, rate
from vmoe_robust.report.table import percent, radius, radius_axis, table
from vmoe_robust.report.tokens import TokenExperts
from vmoe_robust.report.verdicts import NO_CLASS, is_right
from vmoe_robust.robustness.sweep import Shown, Swept


@dataclasses.dataclass(frozen=True)
class Asked:
  """What was asked of an attack, as far as its numbers depend on it.

  Attributes:
    attack: what ran, by `attacks.label`.
    norm: of the ball.
    radii: in units of pixels in [0, 1].
    several_labels: an image has several labels, and the model a sigmoid loss.
  """

  attack: str
  norm: str
  radii: Sequence[float]
  several_labels: bool = False

  def condition(self, eps: float) -> str:
    """The name of a radius in rows and records."""
    return f'{self.attack} {self.norm} {radius(self.norm, eps)}'


def findings(
  swept: Swept,
  asked: Asked,
  class_names: Sequence[str] = (),
  speed: Mapping[str, float] | None = None,
  experts: TokenExperts | None = None,
) -> Findings:
  """Numbers for each eps, and all of them as a figure.

  Args:
    swept: of `sweep.run`.
    asked: what was asked of it.
    class_names: of the data, for the picture of examples.
    speed: how fast other things than the attack were.
    experts: of the tokens of `swept.shown`, if they are known.
  """
  columns = _ordered(swept.columns, asked)
  right = is_right(columns['prediction_before'], columns['label'])
  first = columns['eps'] == asked.radii[0]
  summary = {
    'attack': asked.attack,
    'norm': asked.norm,
    'clean_accuracy': rate(right[first]),
    'clean_loss': mean(columns['loss_before'][first]),
  }
  if asked.several_labels:
    summary['clean_false_discovery_rate'] = rate(~right[first])
  rows = [_row(swept, columns, asked, eps) for eps in asked.radii]
  figures: list[Figure] = [curve(summary, rows)]
  if swept.shown is not None:
    figures.append(_examples(swept.shown, asked, class_names, experts))
  return Findings(
    columns=columns,
    skipped=swept.corrupt,
    rows=rows,
    summary=summary,
    figures=figures,
    warnings=swept.warnings,
    speed={'attacked_images_per_second': swept.images_per_second}
    | dict(speed or {}),
  )


def _ordered(columns: Columns, asked: Asked) -> Columns:
  """Rows by eps, then example, with the name of their condition."""
  order = np.lexsort((columns['index'], columns['eps']))
  columns = {name: column[order] for name, column in columns.items()}
  names = np.array([asked.condition(eps) for eps in asked.radii])
  place = np.zeros(len(order), int)
  for number, eps in enumerate(asked.radii):
    place[columns['eps'] == eps] = number
  return columns | {'condition': names[place]}


def _row(swept: Swept, columns: Columns, asked: Asked, eps: float) -> dict:
  rows = {k: v[columns['eps'] == eps] for k, v in columns.items()}
  before, after = (
    is_right(rows[f'prediction_{when}'], rows['label'])
    for when in ('before', 'after')
  )
  changed = rows['prediction_before'] != rows['prediction_after']
  out = {
    'condition': asked.condition(eps),
    'attack': asked.attack,
    'norm': asked.norm,
    'eps': eps,
    'robust_accuracy': rate(after),
    'error_before': rate(~before),
    'error_after': rate(~after),
    'loss_before': mean(rows['loss_before']),
    'loss_after': mean(rows['loss_after']),
    'prediction_changes': rate(changed),
    'not_finite': int((rows['prediction_after'] == NO_CLASS).sum()),
    'largest_linf': float(rows['linf'].max()),
    'largest_l2': float(rows['l2'].max()),
    'largest_l1': float(rows['l1'].max()),
    'outside_ball': int((~rows['in_ball']).sum()),
    'outside_range': int((~rows['in_range']).sum()),
  }
  if 'target' in rows:
    out['target_reached'] = rate(rows['prediction_after'] == rows['target'])
  if asked.several_labels:
    out['false_discovery_rate'] = out['error_after']
  out['per_attack'] = _stages(swept.falls[eps], len(after))
  blocks = [n.split('/')[1] for n in rows if n.startswith('routing_change/')]
  loads = swept.loads.get(eps, {})
  if blocks:
    out['routing'] = {b: _routing(rows, loads, b) for b in blocks}
  return out


def _stages(fall, examples: int) -> dict:
  """Accuracy after each attack of an ensemble, in their order."""
  return {
    stage: {
      'robust_after': _rate_of_share(share, examples),
      'seconds': fall.seconds.get(stage),
    }
    for stage, share in fall.robust_after.items()
  }


def _rate_of_share(share: float, examples: int) -> dict:
  return rate(np.arange(examples) < round(share * examples))


def _routing(rows: Columns, loads: dict, block: str) -> dict:
  after = loads[f'load_after/{block}']
  return {
    'change': mean(rows[f'routing_change/{block}'], SHARE),
    'change_after_capacity': mean(rows[f'routing_change_kept/{block}'], SHARE),
    'change_official': mean(rows[f'routing_change_official/{block}'], SHARE),
    'dropped_before': mean(rows[f'dropped_before/{block}'], SHARE),
    'dropped_after': mean(rows[f'dropped_after/{block}'], SHARE),
    'load_before': loads[f'load_before/{block}'].tolist(),
    'load_after': after.tolist(),
    'largest_load_over_mean': float(after.max() / max(after.mean(), 1e-9)),
  }


def curve(summary: Mapping, rows: Sequence[Mapping]) -> LinePlot:
  """Accuracy against eps, after each attack of an ensemble and in the end."""
  times, x_label = radius_axis(summary['norm'])
  found = sorted(rows, key=lambda row: row['eps'])
  x = [0.0] + [times * row['eps'] for row in found]
  clean = summary['clean_accuracy']

  def line(label, estimates, dashed=False):
    return Line.of(label, x, [clean, *estimates], dashed=dashed)

  stages = list(found[0].get('per_attack', {}))[:-1]
  lines = [line(summary['attack'], [row['robust_accuracy'] for row in found])]
  lines += [
    line(
      f'after {stage}',
      [row['per_attack'][stage]['robust_after'] for row in found],
      dashed=True,
    )
    for stage in stages
  ]
  title = f'{summary["attack"]} in {summary["norm"]}, {clean["n"]:,} examples'
  return LinePlot('robustness', title, x_label, 'accuracy', lines)


def class_texts(
  found: Int[np.ndarray, 'images'], names: Sequence[str]
) -> list[str]:
  """Predicted classes as pictures name them."""
  name = lambda i: names[i] if i < len(names) else f'class {i}'
  return ['not finite' if i == NO_CLASS else name(i) for i in found]


def _examples(
  shown: Shown,
  asked: Asked,
  names: Sequence[str],
  experts: TokenExperts | None,
) -> ExamplePictures:
  return ExamplePictures(
    'examples',
    'Images, x_adv and their difference',
    shown.images,
    shown.x_adv,
    class_texts(shown.before, names),
    class_texts(shown.after, names),
    shown.index.tolist(),
    asked.condition(shown.eps),
    experts,
  )


def render(results: dict) -> str:
  """The table of an attack, and how fast things were."""
  rows, summary = results['rows'], results['summary']
  blocks = list(rows[0].get('routing', {}))
  stages = list(rows[0].get('per_attack', {}))
  stages = stages if len(stages) > 1 else []
  name = f'{summary["attack"]} {summary["norm"]}'
  headers = [f'{name} eps', 'accuracy', '95% interval', 'loss', 'changed']
  headers += [f'after {stage}' for stage in stages]
  headers += [
    'routing ' + block.replace('encoderblock_', 'block ') for block in blocks
  ]
  clean = summary['clean_accuracy']
  lines = [
    ['clean', percent(clean['value']), _interval(clean)]
    + [_loss(summary['clean_loss']), '-']
    + ['-'] * (len(stages) + len(blocks))
  ]
  for row in rows:
    eps, accuracy = row['eps'], row['robust_accuracy']
    line = [
      radius(row['norm'], eps),
      percent(accuracy['value']),
      _interval(accuracy),
    ]
    line += [_loss(row['loss_after'])]
    line += [percent(row['prediction_changes']['value'])]
    line += [
      percent(row['per_attack'][stage]['robust_after']['value'])
      for stage in stages
    ]
    line += [percent(row['routing'][b]['change']['value']) for b in blocks]
    lines.append(line)
  return '\n'.join([table(headers, lines), '', *_speed(results)])


def _interval(estimate: Mapping) -> str:
  low, high = estimate['interval']
  return f'{100 * low:.1f} to {100 * high:.1f}'


def _loss(estimate: Mapping) -> str:
  value = estimate['value']
  return 'not finite' if value is None else f'{value:.3f}'


def _speed(results: dict) -> list[str]:
  speed, weights = results['speed'], results['weights']
  attacked = speed['attacked_images_per_second']
  lines = [f'{attacked:,.1f} images/s attacked'] if attacked else []
  if speed.get('trained_images_per_second'):
    lines.append(
      f'trained {weights["step"]} steps at '
      f'{speed["trained_images_per_second"]:,.0f} images/s, '
      f'{weights["parameters"]:,} parameters, '
      f'{weights["flops_per_image"] / 1e6:,.2f} MFLOP/image forward'
    )
  return lines
