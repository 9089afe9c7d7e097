"""`config.study.name = 'routing_attacks'`: attacks that know of the routing.

- router_only raises the divergence: KL of the clean image's router
  probabilities to those of x_adv, mean over tokens, summed over layers.
- expert_only raises the loss of `config.attack` with a gradient that does not
  pass the gates.
- joint raises margin + lambda x divergence for each of several lambdas, each
  from a start of its own, and an image falls if it falls for one of them. It is
  the adaptive attack: does it break images that another attack left?
- margin is its control, which does not know of the routing: it raises the
  margin alone, from the same starts.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.attacks import LOSSES
from vmoe_robust.config import UserError, validate_attack
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.attack import Attacker, asked
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Aux, Model
from vmoe_robust.models.divergence import (
  Scores,
  route_divergence,
  route_scores,
)
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import mean, paired, rate
from vmoe_robust.report.table import percent, points, table
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.robustness.sweep import Swept
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import questions

FIRST, PLAIN = 'first', 'attack'
ROUTER, EXPERT = 'router_only', 'expert_only'
MARGIN, JOINT = 'margin', 'joint'
OURS = (PLAIN, ROUTER, EXPERT, MARGIN, JOINT)


def run(job: Job) -> Findings:
  """Accuracy under each attack, and which images that one left others break.

  It takes a forward pass an image, and a radius (3 + 2 x lambdas) x (3 + 2 x
  `config.attack.steps`) more (a gradient counts as two), and those of
  `config.study.routing_attacks.left_by`, which begins again in a run that goes
  on after it was cut short.

  Raises:
    UserError: the model is dense or its router scores no experts, or the
      attacks do not fit.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  name, config = 'routing_attacks', job.config
  under.require_experts(job, name)
  under.require_router(job, name, ('top_k', 'expert_choice'))
  if not config.attack.random_start:
    raise UserError(
      'config.attack.random_start=False begins where the divergence of routing '
      'is least and has no gradient; use True'
    )
  attacker = _first(job)
  program = _program(job)
  first = attacker(job.classifier.params, job.source, Unfinished(None, {}))
  radii = config.attack.eps
  shown = [
    under.Condition(under.CLEAN, {'eps': 0.0, 'attack': None}),
    *(_condition(config, eps, kind) for eps in radii for kind in OURS),
  ]
  return questions.Question(
    job,
    'routing attacks',
    shown,
    program,
    partial(_findings, job, shown, first),
    adversarial.attack(adversarial.plain(job.classifier.model), config),
  )


def _findings(job, shown, first: Swept, columns: Columns, skipped) -> Findings:
  config, radii = job.config, job.config.attack.eps
  columns = _joined(columns, first.columns, config)
  name = asked(_of_first(config)).attack
  shown = [*shown, *(_condition(config, eps, FIRST) for eps in radii)]
  rows = under.rows(columns, shown)
  for row in rows:
    if row['attack'] in OURS:
      here = under.of(columns, row['condition'])
      row['divergence'] = mean(here['divergence'])
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'first': name,
      'lambdas': list(config.study.routing_attacks.lambdas),
      'fallen': {
        under.radius(config, eps): _fallen(columns, config, eps)
        for eps in radii
      },
    },
    figures=[_figure(rows, job, name)],
    warnings=[f'the first attack: {text}' for text in first.warnings],
  )


def _condition(config: ConfigDict, eps: float, kind: str) -> under.Condition:
  about = {'eps': eps, 'attack': kind}
  return under.Condition(f'{under.radius(config, eps)}, {kind}', about)


def _first(job: Job) -> Attacker:
  """The attack that leaves images to the others."""
  config = _of_first(job.config)
  validate_attack(config.attack)
  return Attacker(job.classifier.model, config)


def _of_first(config: ConfigDict) -> ConfigDict:
  """The configuration of that attack, as long as the others."""
  config = config.copy_and_resolve_references()
  config.attack.name = config.study.routing_attacks.left_by
  return config


def _program(job: Job) -> under.Program:
  config, model = job.config, job.classifier.model
  forward = adversarial.plain(model)
  lambdas = jnp.array(config.study.routing_attacks.lambdas, jnp.float32)
  radii = jnp.array(config.attack.eps, jnp.float32)
  by_divergence = lambda _, aux, goal: moved(goal.context, aux)
  tries, starts = config.copy_and_resolve_references(), config.attack.restarts
  starts = max(starts, 1)
  tries.attack.restarts = starts * len(lambdas)
  alone = adversarial.attack(
    forward, tries, lambda logits, _, goal: margin(logits, goal.label)
  )
  attacks = (  # ROUTER, EXPERT and MARGIN
    adversarial.attack(forward, config, by_divergence),
    adversarial.attack(without_gates(model), config),
    alone,
  )
  joint = adversarial.attack(forward, config, joint_value)

  def program(params, images, batch, x_adv):
    mask, label = batch['mask'], batch['label']
    logits, aux = forward(params, images, mask, ())
    before = route_scores(aux.records, len(images))

    def judged(x_adv):
      logits, aux = forward(params, x_adv, mask, ())
      return classes(logits), moved(before, aux)

    def at_lambda(one):
      number, weight, eps = one
      context, start = (before, weight), starts * number
      return judged(joint(params, images, batch, eps, context, start))

    def at_radius(pair):
      eps, x = pair
      found = [judged(x)]
      found += [
        judged(attack(params, images, batch, eps, before)) for attack in attacks
      ]
      each = jnp.arange(len(lambdas)), lambdas, jnp.full(len(lambdas), eps)
      tops, divergences = jax.lax.map(at_lambda, each)
      found.append(worst(tops, divergences, label))
      return [jnp.stack(part) for part in zip(*found, strict=True)]

    tops, divergences = jax.lax.map(at_radius, (radii, x_adv))
    return under.with_clean(
      {
        'prediction_after': classes(logits),
        'divergence': jnp.zeros(len(images)),
      },
      {'prediction_after': tops, 'divergence': divergences},
    )

  return program


def moved(before: Scores, after: Aux) -> Float[Array, 'batch']:
  """The divergence of x_adv's routes from those of the images."""
  batch = len(next(iter(before.values())))
  return route_divergence(before, route_scores(after.records, batch))


def margin(logits: Array, label: Array) -> Float[Array, 'batch']:
  """The largest logit of another class, less the largest of its own."""
  if label.ndim == 1:
    return LOSSES['margin'](logits, label, label)
  largest = lambda some: jnp.where(some, logits, -jnp.inf).max(-1)
  return largest(label == 0) - largest(label > 0)


def joint_value(logits, aux, goal) -> Float[Array, 'batch']:
  """The margin and lambda x divergence; the context is (scores, lambda)."""
  before, weight = goal.context
  return margin(logits, goal.label) + weight * moved(before, aux)


def without_gates(model: Model) -> adversarial.Forward:
  """The model with a gradient that does not pass the gates."""

  def stop(block, tokens, routing):
    del block
    return tokens, jax.lax.stop_gradient(routing)

  def forward(params, images, mask, context):
    del context
    return model.apply(
      params, images, experts='dropless', mask=mask, intervene=stop
    )

  return forward


def worst(
  predictions: Array, divergences: Array, label: Array
) -> tuple[Array, Array]:
  """Of each image the first attempt [attempts, batch] that broke it, if any."""
  wrong = jax.vmap(lambda found: ~is_right(found, label))(predictions)
  chosen = wrong.argmax(0)[None]
  take = lambda x: jnp.take_along_axis(x, chosen, 0)[0]
  return take(predictions), take(divergences)


def _joined(columns: Columns, first: Columns, config) -> Columns:
  """The columns, and below them those of the first attack."""
  parts = [columns]
  for eps in config.attack.eps:
    here = first['eps'] == eps
    part = {n: first[n][here] for n in ('index', 'label', 'prediction_after')}
    part['divergence'] = np.full(here.sum(), np.nan, np.float32)
    order = np.argsort(part['index'], kind='stable')
    part = {name: column[order] for name, column in part.items()}
    name = _condition(config, eps, FIRST).name
    part['condition'] = np.repeat(np.array([name]), len(order))
    parts.append(part)
  return {n: np.concatenate([part[n] for part in parts]) for n in columns}


def _fallen(columns: Columns, config, eps: float) -> dict:
  """Of the images that the first attack left, how many each attack breaks."""
  right = {
    kind: under.right(under.of(columns, _condition(config, eps, kind)))
    for kind in (FIRST, *OURS)
  }
  left = right[FIRST]
  found: dict = {'left': int(left.sum())}
  for kind in OURS:
    fell = left & ~right[kind]
    share = rate(~right[kind][left]) if left.any() else None
    found[kind] = {
      'fallen': int(fell.sum()),
      'share_of_left': share,
      'first_less_this': paired(left, right[kind]),
    }
  # What knowing of the routing adds, to the images left and to all.
  found['only_joint'] = int((left & right[MARGIN] & ~right[JOINT]).sum())
  found['margin_less_joint'] = paired(right[MARGIN], right[JOINT])
  return found


def _figure(rows, job: Job, first: str) -> LinePlot:
  config, lines = job.config, []
  times, x_label = under.axis(config)
  names = {FIRST: first, PLAIN: f'{config.attack.name}, loss of the class'}
  for kind in (FIRST, *OURS):
    here = [row for row in rows if row['attack'] in (None, kind)]
    here = sorted(here, key=lambda row: row['eps'])
    found = [row['accuracy'] for row in here]
    x = [times * row['eps'] for row in here]
    label = names.get(kind, kind.replace('_', ' '))
    lines.append(Line.of(label, x, found, dashed=kind == FIRST))
  n, settings = rows[0]['accuracy']['n'], config.attack
  title = (
    f'Attacks on routing ({settings.steps} steps, {settings.norm}), '
    f'{n:,} examples'
  )
  return LinePlot('routing_attacks', title, x_label, 'accuracy', lines)


def render(results: dict) -> str:
  """Accuracies, a line a radius, and which images fell below."""
  config = under.config_of(results)
  clean, *rest = results['rows']
  at = {(row['eps'], row['attack']): row for row in rest}
  first = results['summary']['first']
  lines, fallen = [], []
  for eps in dict.fromkeys(row['eps'] for row in rest):
    name = under.radius(config, eps)
    found = results['summary']['fallen'][name]
    shown = [at[eps, k]['accuracy']['value'] for k in (FIRST, *OURS)]
    lines.append([name, *map(percent, shown)])
    fell = [f'{found[kind]["fallen"]} of {found["left"]}' for kind in OURS]
    less = found['margin_less_joint']
    fallen.append(
      [name, *fell, found['only_joint'], points(less['difference'])]
    )
  heads = [kind.replace('_', ' ') for kind in OURS]
  clean = percent(clean['accuracy']['value'])
  return '\n\n'.join(
    [
      table([f'accuracy (clean {clean})', first, *heads], lines),
      table(
        [f'left by {first} and broken by', *heads, 'by joint, not by margin']
        + ['margin - joint, points'],
        fallen,
      ),
    ]
  )
