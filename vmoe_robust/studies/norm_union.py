"""`config.study.name = 'norm_union'`: robust in one norm, or in all of them?

The same attack in Linf, L2 and L1, each at its own radius, and the worst case
of an image over the clean one and all three: the union of the balls.
"""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import UserError, default
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.figures import Bar, BarPlot
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.statistics import paired, rate
from vmoe_robust.report.table import percent, radius, table
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under

NORMS = ('linf', 'l2', 'l1')
UNION = 'union'


def run(job: Job) -> Findings:
  """Accuracy in each norm and in their union, of the dropless model.

  It takes 1 + 3 x (3 + 2 x `config.attack.steps`) forward passes an image (a
  gradient counts as two). Radii are `config.study.norm_union`'s, and
  `config.attack.eps` and `.norm` are not read.

  Raises:
    UserError: the attack is not PGD with the steps of each norm.
  """
  config, model = job.config, job.classifier.model
  _check(config)
  shown = _conditions(config)
  forward = adversarial.plain(model)
  attacks = {n: adversarial.attack(forward, _in(config, n)) for n in NORMS}

  def program(params, images, batch):
    def prediction(x):
      return classes(forward(params, x, batch['mask'], ())[0])

    found = [prediction(images)]
    for norm, attack in attacks.items():
      eps = jnp.float32(config.study.norm_union[norm])
      found.append(prediction(attack(params, images, batch, eps)))
    worst = found[0]
    for each in found[1:]:  # the first one that is wrong
      worst = jnp.where(is_right(worst, batch['label']), each, worst)
    return {'prediction_after': jnp.stack([*found, worst])}

  columns, skipped = under.measured(job, 'norms', shown, program)
  rows = under.rows(columns, shown)
  right = {one.name: under.right(under.of(columns, one.name)) for one in shown}
  for row, one in zip(rows, shown, strict=True):
    if one.name in NORMS:
      others = [right[name] for name in right if name not in (one.name, UNION)]
      row['broken_by_it_alone'] = rate(
        np.all(others, axis=0) & ~right[one.name]
      )
      row['more_than_the_union'] = paired(right[one.name], right[UNION])
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={'union': rate(right[UNION]), 'attack': config.attack.name},
    figures=[_figure(rows, config)],
  )


def _conditions(config: ConfigDict) -> list[under.Condition]:
  radii = config.study.norm_union
  return [
    under.Condition(under.CLEAN, {'eps': 0.0}),
    *(under.Condition(n, {'eps': float(radii[n])}) for n in NORMS),
    under.Condition(UNION, {'eps': None}),
  ]


def _check(config: ConfigDict):
  own = 'leave it out, for each norm has its own'
  for name, way in (
    ('name', "use 'pgd'"),
    ('norm', own),
    ('eps', own),
    ('step_size', own),
  ):
    if config.attack[name] != default().attack[name]:
      raise UserError(
        f'config.attack.{name}={config.attack[name]!r} does not fit '
        f"config.study.name='norm_union', which attacks in three norms; {way}"
      )


def _in(config: ConfigDict, norm: str) -> ConfigDict:
  config = config.copy_and_resolve_references()
  config.attack.norm = norm
  return config


def _figure(rows: list[dict], config: ConfigDict) -> BarPlot:
  groups = {under.CLEAN: 'no attack', UNION: 'worst case over all'}
  bars = []
  for row in rows:
    name, found = row['condition'], row['accuracy']
    eps = f', eps {radius(name, row["eps"])}' if name in NORMS else ''
    group = groups.get(name, 'one norm')
    bars.append(Bar.of(name + eps, found, group))
  n, settings = rows[0]['accuracy']['n'], config.attack
  title = (
    f'Union over norms, {settings.name} ({settings.steps} steps), '
    f'{n:,} examples'
  )
  return BarPlot('norm_union', title, 'accuracy', bars)


def render(results: dict) -> str:
  """A line a norm, and the union."""
  lines = []
  for row in results['rows']:
    low, high = row['accuracy']['interval']
    alone = row.get('broken_by_it_alone')
    lines.append(
      [
        row['condition'],
        '' if row['eps'] is None else radius(row['condition'], row['eps']),
        percent(row['accuracy']['value']),
        f'{100 * low:.1f} to {100 * high:.1f}',
        '-' if alone is None else percent(alone['value']),
      ]
    )
  heads = ['norm', 'eps', 'accuracy', '95% interval', 'broken by it alone']
  return table(heads, lines)
