"""`config.study.name = 'frozen_routing'`: does routing break, or do experts?

Each example is attacked twice: freely, and with the routing held at that of the
clean image. Each x_adv is then judged twice: with its own routing and with the
clean image's. What clean routing wins back of a free attack is damage by
routing; what a free attack breaks under clean routing is damage by experts (and
by all other layers).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Aux, Model
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.report.figures import Bar, BarPlot, Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import paired
from vmoe_robust.report.table import percent, points, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import questions

FREE, FROZEN = 'free', 'frozen'
OWN, CLEAN_ROUTING = 'own', 'clean'
# Attacked and judged with which routing.
WAYS = tuple((a, j) for a in (FREE, FROZEN) for j in (OWN, CLEAN_ROUTING))
# What is compared: the first accuracy less the second.
PAIRS = {
  'routing_damage_of_free_attack': ((FREE, CLEAN_ROUTING), (FREE, OWN)),
  'routing_damage_of_frozen_attack': ((FROZEN, CLEAN_ROUTING), (FROZEN, OWN)),
  'gain_of_the_attack_by_routing': ((FROZEN, CLEAN_ROUTING), (FREE, OWN)),
}


def run(job: Job) -> Findings:
  """Accuracy at each radius, attacked and judged with either routing.

  Clean routing is both which experts a token has and with which gates, so that
  a frozen routing has no gradient. It takes a forward pass an image, and a
  radius 8 + 4 x `config.attack.steps` more (a gradient counts as two).

  Raises:
    UserError: the model is dense, or the attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'frozen_routing')
  config, model = job.config, job.classifier.model
  forward, held = adversarial.plain(model), frozen(model)
  attack_held = adversarial.attack(held, config)
  radii = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv):
    mask = batch['mask']
    logits, clean = forward(params, images, mask, ())
    routing = routing_of(clean)

    def at_radius(pair):  # in the order of `WAYS`
      eps, x = pair
      x_frozen = attack_held(params, images, batch, eps, routing)
      found = [
        classes(judge(params, x, mask, routing)[0])
        for x in (x, x_frozen)
        for judge in (forward, held)
      ]
      return {'prediction_after': jnp.stack(found)}

    return under.with_clean(
      {'prediction_after': classes(logits)},
      jax.lax.map(at_radius, (radii, x_adv)),
    )

  return questions.Question(
    job,
    'frozen routing',
    _conditions(config),
    program,
    partial(_findings, blocks, config),
    adversarial.attack(forward, config),
  )


def _findings(blocks, config, columns: Columns, skipped) -> Findings:
  rows = under.rows(columns, _conditions(config))
  compared = _compared(columns, config)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'blocks': list(blocks),
      'attack': config.attack.name,
      'compared': compared,
    },
    figures=[_figure(rows, config), _differences(compared, rows, config)],
  )


def routing_of(aux: Aux) -> dict[str, Routing]:
  """What was decided in each sparse block."""
  return {block: record.routing for block, record in aux.records.items()}


def frozen(model: Model) -> adversarial.Forward:
  """The model with the routing that it is given as context, by block."""

  def forward(params, images, mask, context: dict[str, Routing]):
    def hold(block, tokens, routing):
      del routing
      return tokens, context[block]

    return model.apply(
      params, images, experts='dropless', mask=mask, intervene=hold
    )

  return forward


def _compared(columns, config) -> dict:
  """The differences of `PAIRS` at each radius."""
  return {
    under.radius(config, eps): {
      name: paired(*(_right(columns, config, eps, way) for way in ways))
      for name, ways in PAIRS.items()
    }
    for eps in config.attack.eps
  }


def _conditions(config) -> list[under.Condition]:
  clean = {'eps': 0.0, 'attacked': None, 'judged': OWN}
  return [
    under.Condition(under.CLEAN, clean),
    *(
      under.Condition(
        _name(config, eps, way),
        {'eps': eps, 'attacked': way[0], 'judged': way[1]},
      )
      for eps in config.attack.eps
      for way in WAYS
    ),
  ]


def _name(config: ConfigDict, eps: float, way: tuple[str, str]) -> str:
  radius = under.radius(config, eps)
  return f'{radius}, {way[0]} attack, {way[1]} routing'


def _right(columns, config, eps, way) -> np.ndarray:
  return under.right(under.of(columns, _name(config, eps, way)))


def _figure(rows: list[dict], config: ConfigDict) -> LinePlot:
  clean, *rest = rows
  lines = []
  times, x_label = under.axis(config)
  for attacked, judged in WAYS:
    here = [
      row
      for row in rest
      if (row['attacked'], row['judged']) == (attacked, judged)
    ]
    here = sorted([clean, *here], key=lambda row: row['eps'])
    found = [row['accuracy'] for row in here]
    lines.append(
      Line.of(
        f'{attacked} attack, judged with {judged} routing',
        [times * row['eps'] for row in here],
        found,
        dashed=judged == CLEAN_ROUTING,
      )
    )
  title = f'Frozen routing under {under.attacked_by(config, rows)}'
  return LinePlot('frozen_routing', title, x_label, 'accuracy', lines)


def _differences(compared: dict, rows: list[dict], config) -> BarPlot:
  """The lines of the other figure lie close; these are paired."""
  bars = []
  for pair in PAIRS:
    for eps in dict.fromkeys(row['eps'] for row in rows if row['eps']):
      one = compared[under.radius(config, eps)][pair]['difference']
      name = pair.replace('_', ' ')
      bars.append(Bar.of(under.radius(config, eps), one, name, times=100))
  return BarPlot(
    'frozen_routing_differences',
    f'What routing changes under {under.attacked_by(config, rows)}',
    'accuracy, paired difference in points',
    bars,
    unit='points',
  )


def render(results: dict) -> str:
  """Accuracies, a line a radius, and the paired differences below."""
  config = under.config_of(results)
  clean, *rest = results['rows']
  at = {(r['eps'], r['attacked'], r['judged']): r['accuracy'] for r in rest}
  lines = [['clean', percent(clean['accuracy']['value']), *[''] * 3]]
  compared = []
  radii = dict.fromkeys(row['eps'] for row in rest)
  for eps in radii:
    name = under.radius(config, eps)
    found = results['summary']['compared'][name]
    values = (percent(at[eps, *way]['value']) for way in WAYS)
    lines.append([name, *values])
    for pair in PAIRS:
      one = found[pair]
      compared.append(
        [
          name,
          pair.replace('_', ' '),
          points(one['difference']),
          f'{one["only_first"]} / {one["only_second"]}',
          f'{one["p"]:.2g}',
        ]
      )
  heads = [f'{a} attack, {j} routing' for a, j in WAYS]
  return '\n\n'.join(
    [
      table(['accuracy', *heads], lines),
      table(['at', 'difference', 'points', 'images won / lost', 'p'], compared),
    ]
  )
