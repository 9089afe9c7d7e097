"""`config.study.name = 'forced_expert'`: does one expert beat the router?

One expert of one sparse block gets all tokens, with a gate of 1, and the model
is attacked and judged so (after arXiv:2509.05086). A control keeps the router's
first choice and sets its gate alone to 1: what an expert does beyond that is
its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import LEVEL, paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices
from vmoe_robust.studies import conditions as under

ROUTER, GATE, FORCED = 'router', 'gate 1', 'forced'
# In place of an expert's number: that which the router chose first.
_OWN = -1


def run(job: Job) -> Findings:
  """Accuracy, clean and attacked, of each forced expert, dropless.

  With F experts of B blocks there are C = 1 + B + F x B models, and an image
  takes C forward passes, and a radius C x (3 + 2 x `config.attack.steps`) more
  (a gradient counts as two). One program serves all.

  Raises:
    UserError: the model is dense, its router is neither top_k nor hash, it has
      no such block or expert, or the attack is of another kind.
  """
  blocks = under.require_experts(job, 'forced_expert')
  under.require_router(job, 'forced_expert', ('top_k', 'hash'))
  config, radii = job.config, (0.0, *job.config.attack.eps)
  models = _models(config, blocks)
  shown = [_condition(config, eps, *one) for eps in radii for one in models]
  forward = forced(job.classifier.model, blocks)
  attack = adversarial.attack(forward, config)

  def program(params, images, batch, models):
    mask = batch['mask']

    def of_model(one):
      judge = lambda x: classes(forward(params, x, mask, one)[0])
      at = lambda eps: judge(attack(params, images, batch, eps, one))
      eps = jnp.array(config.attack.eps, jnp.float32)
      return jnp.concatenate([judge(images)[None], jax.lax.map(at, eps)])

    found = jax.lax.map(of_model, models)
    # Radii first.
    return {'prediction_after': found.swapaxes(0, 1).reshape(-1, len(images))}

  numbers = [
    (-1 if block is None else blocks.index(block), expert)
    for _, block, expert in models
  ]
  given = (np.array(numbers, np.int32),)
  columns, skipped = under.measured(job, 'forced expert', shown, program, given)
  rows = under.rows(columns, shown)
  _compare(columns, rows, config)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'attack': config.attack.name,
      'beats_the_router': {
        under.radius(config, eps): _beating(rows, eps) for eps in radii
      },
    },
    figures=[_figure(rows, config)],
  )


def forced(model: Model, blocks: tuple[str, ...]) -> adversarial.Forward:
  """The model whose context is (the block's place, its expert).

  Place -1 leaves all blocks to their routers; expert -1 is the router's first.
  """

  def forward(params, images, mask, context: Int[Array, 'two']):
    place, expert = context

    def intervene(block, tokens, routing):
      new = alone(routing, expert)
      here = place == blocks.index(block)
      choose = lambda new, old: jnp.where(here, new, old)
      return tokens, routing._replace(
        experts=choose(new.experts, routing.experts),
        gates=choose(new.gates, routing.gates),
      )

    return model.apply(
      params, images, experts='dropless', mask=mask, intervene=intervene
    )

  return forward


def alone(routing: Routing, expert: Int[Array, '']) -> Routing:
  """All tokens go to one expert, with a gate of 1, and to no other."""
  first = routing.experts[..., 0]
  first = jnp.where(expert < 0, first, expert.astype(first.dtype))
  nobody = jnp.full_like(routing.experts, routing.logits.shape[-1])
  return routing._replace(
    experts=nobody.at[..., 0].set(first),
    gates=jnp.zeros_like(routing.gates).at[..., 0].set(1),
  )


def _models(config: ConfigDict, blocks) -> list[tuple[str, str | None, int]]:
  """What is forced, in which block, to which expert; the router first."""
  settings, experts = config.study.forced_expert, config.model.experts
  numbers = [int(block.split('_')[-1]) for block in blocks]
  for number in settings.blocks:
    if number not in numbers:
      raise UserError(
        f'config.study.forced_expert.blocks={tuple(settings.blocks)} has '
        f'{number!r}, and the sparse blocks of this model are '
        f'{", ".join(map(str, numbers))}; use those, or () for all'
      )
  field = 'config.study.forced_expert.experts'
  choices.check_numbers(field, settings.experts, 0, experts - 1, 'experts')
  chosen = sorted(settings.experts or range(experts))
  found: list[tuple[str, str | None, int]] = [(ROUTER, None, _OWN)]
  for number in sorted(settings.blocks or numbers):
    block = f'encoderblock_{number}'
    found += [(GATE, block, _OWN), *((FORCED, block, e) for e in chosen)]
  return found


def _condition(config, eps, kind, block, expert) -> under.Condition:
  what = kind if kind == ROUTER else f'{block}, {kind}'
  what = f'{block}, expert {expert}' if kind == FORCED else what
  return under.Condition(
    f'{under.radius(config, eps)}, {what}',
    {'eps': eps, 'forced': kind, 'block': block, 'expert': expert},
  )


def _compare(columns: Columns, rows: list[dict], config) -> None:
  """Adds each row's difference from the router and from a gate of 1."""
  right = lambda one: under.right(under.of(columns, one))
  for row in rows:
    own = right(row['condition'])
    router = _condition(config, row['eps'], ROUTER, None, _OWN)
    row['against_router'] = paired(own, right(router))
    if row['forced'] == FORCED:
      gate = _condition(config, row['eps'], GATE, row['block'], _OWN)
      row['against_gate_1'] = paired(own, right(gate))


def _beating(rows: list[dict], eps: float) -> dict:
  """How many forced experts are better or worse than the router.

  McNemar's p times the number of forced experts (Bonferroni) is to be below
  0.05. The best one is the best of as many on the same images, so that its
  difference flatters it.
  """
  here = [r for r in rows if r['eps'] == eps and r['forced'] == FORCED]
  found = [row['against_router'] for row in here]
  value = lambda one: one['difference']['value']
  sure = [one for one in found if one['p'] * len(found) < 1 - LEVEL]
  best = max(here, key=lambda row: value(row['against_router']))
  return {
    'forced': len(found),
    'better': sum(value(one) > 0 for one in sure),
    'worse': sum(value(one) < 0 for one in sure),
    'best': best['condition'],
    'best_less_router': best['against_router']['difference'],
    'best_p_of_all': min(best['against_router']['p'] * len(found), 1.0),
  }


def _figure(rows: list[dict], config: ConfigDict) -> LinePlot:
  lines = []
  for block in dict.fromkeys(r['block'] for r in rows if r['block']):
    for eps in dict.fromkeys(row['eps'] for row in rows):
      here = [r for r in rows if (r['eps'], r['block']) == (eps, block)]
      found = [row['against_router']['difference'] for row in here]
      x = [row['expert'] for row in here]
      lines.append(
        Line.of(under.radius(config, eps), x, found, block, times=100)
      )
  router = ', '.join(
    f'{under.radius(config, row["eps"])} {percent(row["accuracy"]["value"])}'
    for row in rows
    if row['forced'] == ROUTER
  )
  title = f'One expert forced, attacked so\n{under.attacked_by(config, rows)}'
  return LinePlot(
    'forced_expert',
    title,
    f"expert ({_OWN}: the router's first, with a gate of 1)",
    'less the router, paired, in points',
    lines,
    unit='points',
    note=f'the router itself: {router}',
  )


def render(results: dict) -> str:
  """Accuracies, a line an expert, and whether one beats the router."""
  rows, lines = results['rows'], []
  radii = list(dict.fromkeys(row['eps'] for row in rows))
  at = {(row['eps'], row['block'], row['expert']): row for row in rows}
  for block, expert in dict.fromkeys((r['block'], r['expert']) for r in rows):
    here = [at[eps, block, expert] for eps in radii]
    name = here[0]['condition'].split(', ', 1)[1]
    lines.append(
      [
        name,
        *(
          f'{percent(row["accuracy"]["value"])} '
          f'({100 * row["against_router"]["difference"]["value"]:+.1f})'
          for row in here
        ),
      ]
    )
  config, compared = under.config_of(results), []
  heads = [under.radius(config, eps) for eps in radii]
  for name in heads:
    found = results['summary']['beats_the_router'][name]
    compared.append(
      [
        name,
        f'{found["better"]} / {found["worse"]} of {found["forced"]}',
        found['best'].split(', ', 1)[1],
        f'{100 * found["best_less_router"]["value"]:+.1f}',
        f'{found["best_p_of_all"]:.2g}',
      ]
    )
  return '\n\n'.join(
    [
      table(['accuracy (less the router)', *heads], lines),
      table(['at', 'better / worse', 'best', 'points', 'p x tests'], compared),
    ]
  )
