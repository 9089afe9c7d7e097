"""`config.study.name = 'margin'`: how far is a token from another expert?

A token has the K experts of the highest scores s. The choice changes where the
K-th score meets the next one, to first order at the radius

  (s_(K) - s_(K+1)) / |grad_x (s_(K) - s_(K+1))|_*

with the gradient by the image and the dual of the attack's norm. Of the
gradient, entries that would take a pixel out of [0, 1] are left out. A step
along it shows whether the choice does change, and an attack of the class
whether such changes come by themselves. The model is computed in float32, but
for the attack.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial, routing
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.models.routers.top_k import highest, pick
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import SHARE, mean, rate
from vmoe_robust.report.table import percent, radius, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices, questions
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies.first_order import Margins, first_order

# Shares of tokens, before the block's name in the records.
SHARES = {
  'below': 'first-order radius at most eps',
  'reached': 'changed by a step of at most eps',
  'changed': 'changed by the attack of the class',
}
_QUANTILES = (0.05, 0.5, 0.95)
Scores = Float[Array, 'batch tokens experts']


def run(job: Job) -> Findings:
  """Radii of all tokens and blocks, and whether choices change there.

  It takes 2 forward passes an image; for each sparse block and token of
  `config.study.margin.tokens` a backward and 2 forward passes through the
  layers below; and a radius 3 + 2 x `config.attack.steps` more (a gradient
  counts as two). Of ViT-B/16 at 224 pixels with six sparse blocks these are 6 x
  196 x 3 = 3,528 passes an image, less than an attack of 1,800 steps; 16 tokens
  are 288.

  Raises:
    UserError: the model is dense, its router is not top_k, its tokens have all
      experts, or the attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'margin')
  under.require_router(job, 'margin', ('top_k',))
  config = job.config
  selected = config.model.router.selected
  if selected == config.model.experts:
    raise UserError(
      f'config.model.router.selected={selected} are all experts, so that no '
      "choice can change and config.study.name='margin' has nothing to measure;"
      ' use a model of more experts'
    )
  return questions.Question(
    job,
    'margin',
    under.at_radii(config),
    _program(job, blocks),
    partial(_findings, blocks, config),
    adversarial.attack(adversarial.plain(job.classifier.model), config),
  )


def _findings(blocks, config, columns: Columns, skipped) -> Findings:
  shown = under.at_radii(config)
  rows = [
    row | _of_row(under.of(columns, condition), blocks)
    for condition, row in zip(shown, under.rows(columns, shown), strict=True)
  ]
  clean = under.of(columns, under.CLEAN)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'blocks': list(blocks),
      'attack': config.attack.name,
      'norm': config.attack.norm,
      'tokens_an_image': config.study.margin.tokens or 'all',
      'smallest_radius': {
        name: _quantiles(clean[f'radius/{name}']) for name in ('any', *blocks)
      },
    },
    figures=[_figure(rows, blocks, config)],
    warnings=_warnings(clean, blocks, config),
  )


def _program(job: Job, blocks: tuple[str, ...]) -> under.Program:
  config, model = job.config, under.in_float32(job)
  forward = adversarial.plain(model)
  radii = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv):
    mask = batch['mask']
    logits, aux = forward(params, images, mask, ())
    chosen = _chosen(aux.records, config)
    order = sampled(config, batch['index'], chosen[blocks[0]].shape[1])
    found = {
      block: first_order(
        partial(_margins, config, model, params, mask, chosen, block),
        images,
        order,
        config.attack.norm,
      )
      for block in blocks
    }

    def at_radius(pair):
      eps, x = pair
      after, now = forward(params, x, mask, ())
      return _columns(after, chosen, _chosen(now.records, config), eps)

    def _columns(after, before, now, eps):
      out = {'prediction_after': classes(after)}
      for block, (nearest, reached) in found.items():
        moved = (now[block] != before[block]).any(-1)  # of all tokens
        out[f'radius/{block}'] = nearest.min(1)
        out[f'lost/{block}'] = jnp.isnan(nearest).sum(1)
        # What is not a number is no margin.
        out[f'below/{block}'] = (~(nearest > eps)).mean(1)
        out[f'reached/{block}'] = (reached <= eps).mean(1)
        out[f'changed/{block}'] = moved.mean(1)
      every = jnp.stack([out[f'radius/{block}'] for block in blocks])
      return out | {'radius/any': every.min(0)}

    clean = _columns(logits, chosen, chosen, jnp.float32(0))
    return under.with_clean(clean, jax.lax.map(at_radius, (radii, x_adv)))

  return program


def sampled(
  config: ConfigDict, index: Int[Array, 'batch'], tokens: int
) -> Int[Array, 'batch sampled']:
  """The tokens of each image that are looked at; draws follow its `index`.

  Raises:
    UserError: an image has fewer.
  """
  number = config.study.margin.tokens
  if number > tokens:
    raise UserError(
      f'config.study.margin.tokens={number}, and an image has {tokens}; use 0 '
      'for all of them'
    )
  if not number:
    return jnp.broadcast_to(jnp.arange(tokens), (len(index), tokens))
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  mix = lambda key: jax.random.permutation(key, tokens)[:number]
  return jax.vmap(mix)(fold(jax.random.key(config.seed), index))


def signed_margin(
  scores: Scores, chosen: Bool[Array, 'batch tokens experts']
) -> Margins:
  """The lowest score of the chosen experts less the highest of the others."""
  lowest = highest(jnp.where(chosen, -scores, -jnp.inf), 1)[..., 0]
  next_one = highest(jnp.where(chosen, -jnp.inf, scores), 1)[..., 0]
  return pick(scores, lowest) - pick(scores, next_one)


def _margins(config, model: Model, params, mask, chosen, block, images):
  _, aux = model.apply(params, images, experts='dropless', mask=mask)
  mine = aux.records[block].routing
  scores = choices.scores_of(config, params, block, mine)
  return signed_margin(scores, chosen[block])


def _chosen(records, config) -> dict[str, Bool[Array, 'batch tokens experts']]:
  """Whether each token selected each expert, by block."""
  return {
    block: routing.selected(record, config.model, len(record.routing.logits))[0]
    for block, record in records.items()
  }


def _of_row(columns: Columns, blocks) -> dict:
  """Shares of tokens in each block, and of images with any such token."""
  found: dict = {
    name: {block: mean(columns[f'{name}/{block}'], SHARE) for block in blocks}
    for name in SHARES
  }
  found['images'] = {
    name: rate(np.any([columns[f'{name}/{b}'] > 0 for b in blocks], axis=0))
    for name in SHARES
  }
  return found


def _quantiles(radius: Float[np.ndarray, 'images']) -> dict:
  """Of the smallest radius of an image; None is infinite."""
  known = radius[~np.isnan(radius)]
  found = {}
  for share in _QUANTILES if len(known) else ():
    value = float(np.quantile(known, share, method='lower'))
    found[f'{share:g}'] = value if np.isfinite(value) else None
  return found


def _warnings(clean: Columns, blocks, config) -> list[str]:
  out = []
  if lost := sum(int(clean[f'lost/{block}'].sum()) for block in blocks):
    out.append(
      f'{lost} tokens have a margin or gradient that is not finite: they count '
      'as below every radius'
    )
  if tokens := config.study.margin.tokens:
    out.append(
      f'{tokens} tokens of each image were drawn: of all its tokens the '
      'smallest radius is at most that of these, and the shares of images '
      'below and reached are at least these'
    )
  return out


def _figure(rows, blocks, config) -> LinePlot:
  times, x_label = under.axis(config)
  x, lines = [times * row['eps'] for row in rows], []
  tokens = config.study.margin.tokens
  for place in (*blocks, 'images'):
    for name, label in SHARES.items():
      found = [(row | row['images'])[name] for row in rows]
      panel = 'images: any token in any block'
      if place != 'images':
        found, panel = [row[name][place] for row in rows], f'{place}: tokens'
      if tokens and name != 'changed':
        label = f'{label}, of {tokens} drawn'
      lines.append(Line.of(label, x, found, panel, dashed=name == 'below'))
  title = f'Routing margins beside {under.attacked_by(config, rows)}'
  return LinePlot('margin', title, x_label, 'share', lines)


def render(results: dict) -> str:
  """Shares below and changed, a line a radius and block; smallest radii."""
  summary, lines = results['summary'], []
  norm = summary['norm']
  for row in results['rows']:
    for block in summary['blocks']:
      shown = [percent(row[name][block]['value']) for name in SHARES]
      lines.append([row['condition'], f'{block}, tokens', *shown])
    shown = [percent(row['images'][name]['value']) for name in SHARES]
    lines.append([row['condition'], 'images, any token', *shown])
  radii = [
    [name, *(_number(norm, value) for value in found.values())]
    for name, found in summary['smallest_radius'].items()
  ]
  heads = [f'{100 * share:g}% of images' for share in _QUANTILES]
  drawn = summary['tokens_an_image']
  of = '' if drawn == 'all' else f', of {drawn} tokens'
  shares = [name if name == 'changed' else name + of for name in SHARES]
  return '\n\n'.join(
    [
      table(['at', 'of', *shares], lines),
      table([f'smallest radius ({norm}){of}', *heads], radii),
    ]
  )


def _number(norm: str, eps: float | None) -> str:
  return 'infinite' if eps is None else radius(norm, eps)
