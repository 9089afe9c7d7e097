"""`config.study.name = 'lipschitz'`: how steep are a cell and its boundaries?

Within a routing cell, where no choice of any token changes, a sparse model is
as smooth as its experts; where a choice changes, it jumps. So |f(u) - f(v)| /
|u - v| of the logits f, both lengths L2, is measured for pairs within a cell
and across cells, beside the norm of the Jacobian; and the jump itself, by
bisection between an image and a point with other choices.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial, routing
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.models.divergence import route_scores
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import mean, rate
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.smoothness import (
  KINDS,
  PLACES,
  Jump,
  jump,
  slopes,
  spectral_norm,
)
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies.routing_attacks import moved

# A jump is told from rounding if it is so many times as large.
_ABOVE_ROUNDING = 10
_QUANTILES = (0.05, 0.5, 0.95)


def run(job: Job) -> Findings:
  """Slopes at each radius, and jumps at a boundary on the way to an x_adv.

  The point with other choices is found by PGD that raises the divergence of
  routing, whatever becomes of the class. The model is computed in float32: of
  neighbouring images, bfloat16's logits differ by rounding. It takes 1 forward
  pass an image, 3 + 3 x `config.study.lipschitz.iterations` for the Jacobian (a
  gradient counts as two, and so does a derivative along a direction), and a
  radius 4 x `config.study.lipschitz.pairs` + 54 + 2 x `config.attack.steps`.

  Raises:
    UserError: the model is dense or its router is not top_k, or the attack does
      not fit.
  """
  blocks = under.require_experts(job, 'lipschitz')
  under.require_router(job, 'lipschitz', ('top_k',))
  config = job.config
  if not config.attack.random_start:
    raise UserError(
      'config.attack.random_start=False begins where the divergence of routing '
      'is least and has no gradient; use True'
    )
  shown = under.at_radii(config)
  columns, skipped = under.measured(job, 'lipschitz', shown, _program(job))
  rows = under.rows(columns, shown)
  clean = under.of(columns, under.CLEAN)
  for row in rows[1:]:
    row |= _of_row(under.of(columns, row['condition']))
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'blocks': list(blocks),
      'norm_of_the_ball': config.attack.norm,
      'jacobian': {
        'mean': mean(clean['jacobian']),
        'largest': _largest(clean['jacobian']),
      },
    },
    figures=_figures(rows, mean(clean['jacobian']), config),
    warnings=_warnings(rows),
  )


def _program(job: Job) -> under.Program:
  config, model = job.config, under.in_float32(job)
  settings, norm = config.study.lipschitz, config.attack.norm
  forward = adversarial.plain(model)
  attack = adversarial.attack(
    adversarial.without_classes(forward),
    config,
    lambda _, aux, goal: moved(goal.context, aux),
  )

  def program(params, images, batch):
    mask = batch['mask']
    answer = partial(_answer, config, model, params, mask)
    logits, aux = forward(params, images, mask, ())
    before = route_scores(aux.records, len(images))
    keys = _keys(config.seed, batch['index'], settings.pairs + 1)
    jacobian = spectral_norm(
      lambda x, plain: model.apply(
        params, x, experts='dropless', mask=mask, plain=plain
      )[0],
      images,
      keys[0],
      settings.iterations,
    )

    def at_radius(eps):
      out = slopes(answer, images, eps, norm, keys[1:])
      x_adv = attack(params, images, batch, eps, before)
      out['prediction_after'] = classes(answer(x_adv)[0])
      return (
        out | jump(answer, images, x_adv)._asdict() | {'jacobian': jacobian}
      )

    found = jax.lax.map(at_radius, jnp.array(config.attack.eps, jnp.float32))
    # Nothing is drawn at the clean image.
    clean = {name: jnp.zeros_like(x[0]) for name, x in found.items()}
    clean |= {'prediction_after': classes(logits), 'jacobian': jacobian}
    return {n: jnp.concatenate([clean[n][None], x]) for n, x in found.items()}

  return program


def _answer(config, model: Model, params, mask, images):
  logits, aux = model.apply(params, images, experts='dropless', mask=mask)
  selected = partial(routing.selected, model=config.model, batch=len(images))
  return logits, jnp.stack([selected(r)[0] for r in aux.records.values()], 1)


def _keys(seed, index, number) -> Key[Array, 'number batch']:
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(
    fold(jax.random.key(seed), index)
  )


def _of_row(columns: Columns) -> dict:
  """Means over the images that have such a pair, or a boundary."""
  row: dict = {}
  for place in PLACES:
    row[place] = {}
    for kind in KINDS:
      some = columns[f'pairs/{kind}/{place}'] > 0
      slope = columns[f'{kind}/{place}'][some]
      row[place][kind] = {'mean': _mean(slope), 'largest': _largest(slope)}
  found = columns['found']
  here = {name: columns[name][found] for name in Jump._fields}
  row['jump'] = {
    'found': rate(found),
    **{name: _mean(here[name]) for name in ('size', 'relative', 'rounding')},
    'quantiles': _quantiles(here['relative']),
    'distance': _mean(here['distance']),
    'order': _mean(here['order']),
    'changed': _mean(here['changed']),
    'flips': rate(here['flips']) if found.any() else None,
  }
  return row


def _mean(values) -> dict | None:
  return mean(values) if len(values) else None


def _largest(values: Float[np.ndarray, 'images']) -> float | None:
  """Null where there is none, or one that is not a number."""
  largest = float(values.max()) if len(values) else np.nan
  return largest if np.isfinite(largest) else None


def _quantiles(values: Float[np.ndarray, 'images']) -> dict:
  if not len(values) or not np.isfinite(values).all():
    return {}
  return {f'{q:g}': float(np.quantile(values, q)) for q in _QUANTILES}


def _warnings(rows) -> list[str]:
  out = []
  for row in rows[1:]:
    found = row['jump']
    if not (found['relative'] and found['relative']['value']):
      continue
    size, floor = found['relative']['value'], found['rounding']['value']
    if floor is not None and size < _ABOVE_ROUNDING * floor:
      out.append(
        f'jumps at {row["condition"]} are {size:.1e} of the logits and '
        f'rounding is {floor:.1e}: they cannot be told apart'
      )
  return out


def _figures(rows, jacobian: dict, config) -> list[LinePlot]:
  lines = []
  times, x_label = under.axis(config)
  for kind in KINDS:
    for place in PLACES:
      found = [(row['eps'], row[place][kind]['mean']) for row in rows[1:]]
      label = f'{kind} pairs {place} cells' if place == 'across' else ''
      label = label or f'{kind} pairs within a cell'
      lines.append(_line(label, found, times))
  norm = [(row['eps'], jacobian) for row in rows]
  lines.append(
    _line('norm of the Jacobian at the image', norm, times, dashed=True)
  )
  n = rows[0]['accuracy']['n']
  ball = f'{config.attack.norm} ball, {n:,} examples'
  slope = LinePlot(
    'lipschitz',
    f'Largest slope of the logits in the {ball}',
    x_label,
    '|df| / |dx|, L2, mean over images',
    [line for line in lines if line.x],
    unit='',
    note='of the images with such a pair; across cells shorter pairs are '
    'steeper, without bound',
  )
  sides = (('relative', 'across a boundary'), ('rounding', 'a step inside'))
  lines = [
    _line(label, [(row['eps'], row['jump'][name]) for row in rows[1:]], times)
    for name, label in sides
  ]
  jumps = LinePlot(
    'lipschitz_jumps',
    f'Jump of the logits between neighbouring floats, {ball}',
    f'{x_label} of the segment',
    '|f(x+) - f(x-)| / |f|',
    [line for line in lines if line.x],
    unit='',
    note='mean over the images for which a boundary was found',
  )
  return [slope, jumps] if jumps.lines else [slope]


def _line(label: str, found, times: float, dashed: bool = False) -> Line:
  """Of (eps, estimate) those that are known."""
  known = [(e, v) for e, v in found if v and v['value'] is not None]
  x, found = [times * e for e, _ in known], [value for _, value in known]
  return Line.of(label, x, found, dashed=dashed)


def render(results: dict) -> str:
  """Slopes and jumps, a line a radius."""
  summary, lines, jumps = results['summary'], [], []
  for row in results['rows'][1:]:
    shown = [row[place][kind] for kind in KINDS for place in PLACES]
    lines.append([row['condition'], *(_number(one['mean']) for one in shown)])
    found = row['jump']
    names = 'relative', 'rounding', 'distance', 'order', 'changed'
    jumps.append(
      [
        row['condition'],
        percent(found['found']['value']),
        *(_number(found[name]) for name in names),
        percent(found['flips'] and found['flips']['value']),
      ]
    )
  heads = [f'{kind}, {place}' for kind in KINDS for place in PLACES]
  jump_heads = ['boundary found', '|df|/|f|', 'rounding', '|dx|']
  norm = _number(summary['jacobian']['mean'])
  return '\n\n'.join(
    [
      table([f'|df|/|dx| (Jacobian {norm})', *heads], lines),
      table(['jump', *jump_heads, 'order', 'changed', 'class flips'], jumps),
    ]
  )


def _number(estimate: dict | None) -> str:
  known = estimate and estimate['value'] is not None
  return f'{estimate["value"]:.3g}' if known else '-'
