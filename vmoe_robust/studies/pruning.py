"""`config.study.name = 'pruning'`: how many experts can be taken away?

The same number of experts is removed from each sparse block: those that are
used least first, those that are used most first, and at random. Their tokens go
to the next best expert that is left.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import SHARE, mean, paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices, questions
from vmoe_robust.studies import conditions as under

NONE, LEAST, MOST, RANDOM = 'none', 'least used', 'most used', 'random'


def run(job: Job) -> Findings:
  """Accuracy of the dropless model by the number of experts removed.

  A removed expert's logit is minus infinity, so that gates and choices are
  those of the model without it. Use is counted on the clean images of the
  split, labels unseen, in a first pass. x_adv are those of the whole model, or
  with `config.study.pruning.attack_pruned` each pruned model's own.

  With N numbers and D draws there are C = 1 + (2 + D) x N models, and an image
  takes 1 + C forward passes, and a radius C + 2 + 2 x `config.attack.steps`
  more (a gradient counts as two), or with `attack_pruned` C x (3 + 2 x steps).
  One program serves all models.

  Raises:
    UserError: the model is dense, its router is not top_k, there are fewer
      experts than are to be removed, or the attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'pruning')
  under.require_router(job, 'pruning', ('top_k',))
  config, model = job.config, job.classifier.model
  settings, radii = config.study.pruning, (0.0, *config.attack.eps)
  numbers = _numbers(config)
  models = _models(numbers, settings.draws)
  shown = [_condition(config, eps, *one) for eps in radii for one in models]
  forward = choices.turned(model, blocks)
  attack_pruned = adversarial.attack(forward, config)
  attack = None
  if not settings.attack_pruned:
    attack = adversarial.attack(adversarial.plain(model), config)
  eps = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv, kept):
    mask, own = batch['mask'], config.model.router.selected
    of = lambda kept: choices.Setting(kept, own)
    judge = lambda x, kept: classes(forward(params, x, mask, of(kept))[0])

    def of_model(kept):
      x = x_adv
      if x is None:
        one = lambda e: attack_pruned(params, images, batch, e, of(kept))
        x = jax.lax.map(one, eps)
      x = jnp.concatenate([images[None], x])
      return jax.lax.map(lambda x: judge(x, kept), x)

    found = jax.lax.map(of_model, kept)
    # Radii first.
    return {'prediction_after': found.swapaxes(0, 1).reshape(-1, len(images))}

  use = choices.uses(job, blocks)
  kept = np.stack([_kept(use, *one, config.seed) for one in models])
  return questions.Question(
    job,
    'pruning',
    shown,
    program,
    partial(_findings, shown, blocks, use, config),
    attack,
    (kept,),
  )


def _findings(
  shown, blocks, use, config, columns: Columns, skipped
) -> Findings:
  rows = under.rows(columns, shown)
  for row in rows:
    whole = _condition(config, row['eps'], NONE, 0, 0)
    both = [
      under.right(under.of(columns, c)) for c in (row['condition'], whole)
    ]
    row['against_unpruned'] = paired(*both)
  drawn = _drawn(columns, rows, config)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'attack': config.attack.name,
      'x_adv_of': 'each pruned model'
      if config.study.pruning.attack_pruned
      else 'the unpruned model',
      'use': {b: u.tolist() for b, u in zip(blocks, use, strict=True)},
      'random': drawn,
    },
    figures=[_figure(rows, drawn, config)],
  )


def _numbers(config: ConfigDict) -> tuple[int, ...]:
  """How many experts are removed, ascending."""
  removed, experts = config.study.pruning.removed, config.model.experts
  if not removed:
    return tuple(range(1, experts))
  field = 'config.study.pruning.removed'
  choices.check_numbers(field, removed, 1, experts - 1, 'numbers to remove')
  return tuple(sorted(removed))


def _models(numbers, draws: int) -> list[tuple[str, int, int]]:
  """Order, its draw and the number removed; the whole model first."""
  orders = [(LEAST, 0), (MOST, 0), *((RANDOM, i + 1) for i in range(draws))]
  return [(NONE, 0, 0)] + [(*order, n) for order in orders for n in numbers]


def _condition(config, eps, order, draw, removed) -> under.Condition:
  which = f'{removed} {order}' if removed else 'all experts'
  which += f' {draw}' if draw else ''
  about = {'eps': eps, 'order': order, 'draw': draw, 'removed': removed}
  return under.Condition(f'{under.radius(config, eps)}, {which}', about)


def _kept(
  use: Int[np.ndarray, 'blocks experts'],
  order: str,
  draw: int,
  removed: int,
  seed: int,
) -> Bool[np.ndarray, 'blocks experts']:
  """Which experts are left; of equal use the first one goes first.

  A draw's orders are one for each block, the same for every number removed.
  """
  if order == RANDOM:
    ranked = np.random.default_rng([seed, draw]).permuted(
      np.tile(np.arange(use.shape[1]), (len(use), 1)), axis=1
    )
  else:
    ranked = np.argsort(-use if order == MOST else use, axis=1, kind='stable')
  kept = np.ones(use.shape, bool)
  np.put_along_axis(kept, ranked[:, :removed], False, axis=1)
  return kept


def _drawn(
  columns: Columns, rows: list[dict], config: ConfigDict
) -> dict[str, dict]:
  """Of each radius and number removed at random, the mean over draws.

  The interval is over images; the lowest and the highest draw say how much it
  matters which experts go.
  """
  found = {}
  random = [row for row in rows if row['order'] == RANDOM]
  for eps in (0.0, *config.attack.eps):
    for number in dict.fromkeys(row['removed'] for row in random):
      here = [r for r in random if (r['eps'], r['removed']) == (eps, number)]
      right = [under.right(under.of(columns, r['condition'])) for r in here]
      values = [row['accuracy']['value'] for row in here]
      found[_condition(config, eps, RANDOM, 0, number).name] = {
        'eps': eps,
        'removed': number,
        'accuracy': mean(np.mean(right, 0), SHARE),
        'lowest': min(values),
        'highest': max(values),
      }
  return found


def _figure(rows: list[dict], drawn: dict[str, dict], config) -> LinePlot:
  lines = []
  for eps in (0.0, *config.attack.eps):
    mine = [row for row in rows if row['eps'] == eps]
    panel = under.radius(config, eps)
    at_random = [row for row in drawn.values() if row['eps'] == eps]
    for order in (LEAST, MOST, RANDOM):
      ranked = [row for row in mine if row['order'] == order]
      here = [mine[0], *(at_random if order == RANDOM else ranked)]
      found = [row['accuracy'] for row in here]
      x = [row['removed'] for row in here]
      draws = config.study.pruning.draws
      label = order
      if order == RANDOM and draws > 1:
        label = f'random, mean of {draws} draws'
      dashed = order == RANDOM
      lines.append(Line.of(label, x, found, panel, dashed))
  own = config.study.pruning.attack_pruned
  title = (
    f'Experts removed from every sparse block, x_adv of '
    f'{"each pruned model" if own else "the whole model"}\n'
    f'{under.attacked_by(config, rows)}'
  )
  x_label = f'experts removed, of {config.model.experts}'
  return LinePlot('pruning', title, x_label, 'accuracy', lines)


def render(results: dict) -> str:
  """Accuracy by the number removed, and by which ones."""
  config, rows, lines = under.config_of(results), results['rows'], []
  drawn = results['summary']['random']
  ranked = {(r['eps'], r['removed'], r['order']): r for r in rows}
  for row in rows:
    eps, number = row['eps'], row['removed']
    at = under.radius(config, eps)
    if row['order'] == NONE:
      lines.append([at, '0', *[percent(row['accuracy']['value'])] * 3, ''])
    if row['order'] == LEAST:
      random = drawn[_condition(config, eps, RANDOM, 0, number).name]
      lines.append(
        [
          at,
          str(number),
          percent(row['accuracy']['value']),
          percent(ranked[eps, number, MOST]['accuracy']['value']),
          percent(random['accuracy']['value']),
          f'{percent(random["lowest"])} to {percent(random["highest"])}',
        ]
      )
  heads = ['', 'removed', LEAST, MOST, 'random, mean', 'its draws']
  of = results['summary']['x_adv_of']
  return f'{table(heads, lines)}\nx_adv are of {of}'
