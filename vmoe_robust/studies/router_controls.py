"""`config.study.name = 'router_controls'`: what is the learned router worth?

The router of a trained model is exchanged, without training again, for controls
that have learned nothing: a random router, a hash of the position, all experts
with equal gates, and an oracle of the class. Each is attacked with the control
in place. A control decides which experts run and how they share; the sum of a
token's gates stays that of the learned router, so that they are no louder.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.models.intervene import Tokens
from vmoe_robust.models.routers.hash import experts_of
from vmoe_robust.models.routers.routing import Routing, at_least_float32
from vmoe_robust.models.routers.top_k import highest, summing_to_one
from vmoe_robust.report.figures import Bar, BarPlot, Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import DIFFERENCE, SHARE, mean, paired
from vmoe_robust.report.table import percent, points, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under

LEARNED, HASH, RANDOM = 'learned', 'hash', 'random'
ORACLE, UNIFORM = 'oracle', 'uniform'
# Their places are what the program is told.
_KINDS = (LEARNED, HASH, RANDOM, ORACLE)
_LABELS = {
  LEARNED: 'learned router',
  HASH: 'hash of the position',
  RANDOM: 'random router, mean of draws',
  ORACLE: 'oracle: label modulo experts',
  UNIFORM: 'all experts, equal gates',
}
Control = tuple[str, int]  # kind, and of a random one the draw


def run(job: Job) -> Findings:
  """Accuracy with each control, clean and attacked with it in place.

  Controls are one program, to which they are data, but for the uniform one,
  whose tokens have all E experts. With C of them, 4 +
  `config.study.router_controls.draws`, an image takes C forward passes and a
  radius C x (3 + 2 x `config.attack.steps`) more (a gradient counts as two);
  sparse layers of the uniform one are E / K times as large.

  Raises:
    UserError: the model is dense, or its router is not top_k, or the attack is
      of another kind.
  """
  blocks = under.require_experts(job, 'router_controls')
  under.require_router(job, 'router_controls', ('top_k',))
  config = job.config
  controls, radii = _controls(config), (0.0, *config.attack.eps)
  shown = [_condition(config, eps, one) for one in controls for eps in radii]
  program = _program(job, blocks, controls)
  columns, skipped = under.measured(job, 'router controls', shown, program)
  rows = under.rows(columns, shown)
  for row in rows:
    mine = under.right(under.of(columns, row['condition']))
    learned = _right(columns, config, row['eps'], (LEARNED, 0))
    row['against_learned'] = paired(mine, learned)
  summary = {
    'blocks': list(blocks),
    'attack': config.attack.name,
    'oracle': 'label modulo the number of experts',
    'random': {
      under.radius(config, eps): _of_draws(columns, config, eps, controls)
      for eps in radii
    },
  }
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary=summary,
    figures=[
      _accuracies(rows, summary, config),
      _differences(rows, summary, config),
    ],
  )


def _controls(config: ConfigDict) -> list[Control]:
  """The learned router first, the uniform control last."""
  draws = range(1, config.study.router_controls.draws + 1)
  found = [(LEARNED, 0), (HASH, 0), *((RANDOM, draw) for draw in draws)]
  if config.train.loss == 'softmax':  # else an image has several labels
    found.append((ORACLE, 0))
  return [*found, (UNIFORM, 0)]


def _program(job: Job, blocks, controls: Sequence[Control]) -> under.Program:
  config, model = job.config, job.classifier.model
  radii = jnp.array(config.attack.eps, jnp.float32)
  switched = controlled(model, config, blocks)
  alike = uniform(model, config)
  told = jnp.array([(_KINDS.index(k), n) for k, n in controls if k in _KINDS])

  def found_by(forward, params, images, batch, context):
    attack = adversarial.attack(forward, config)

    def judged(x):
      return classes(forward(params, x, batch['mask'], context)[0])

    def at_radius(eps):
      return judged(attack(params, images, batch, eps, context))

    return jnp.concatenate(
      [judged(images)[None], jax.lax.map(at_radius, radii)]
    )

  def program(params, images, batch):
    given = params, images, batch
    label = batch['label']
    label = label if label.ndim == 1 else jnp.zeros(len(label), jnp.int32)
    each = lambda one: found_by(switched, *given, (one[0], one[1], label))
    found = jax.lax.map(each, told)
    last = found_by(alike, *given, ())
    found = jnp.concatenate([found, last[None]])
    return {'prediction_after': found.reshape(-1, len(images))}

  return program


def controlled(
  model: Model, config: ConfigDict, blocks: Sequence[str]
) -> adversarial.Forward:
  """The model with the control that is its context: (kind, draw, labels)."""

  def forward(params, images, mask, context):
    kind, draw, label = context

    def intervene(block, tokens, routing):
      key = jax.random.fold_in(jax.random.key(config.seed), draw)
      key = jax.random.fold_in(key, blocks.index(block))
      options = _options(config.model, block, tokens, routing, key, label)
      experts, gates = jax.lax.switch(kind, options)
      return tokens, routing._replace(experts=experts, gates=gates)

    return model.apply(
      params, images, experts='dropless', mask=mask, intervene=intervene
    )

  return forward


def _options(
  model: ConfigDict, block: str, tokens: Tokens, routing: Routing, key, label
):
  """Functions to (experts, gates), in the order of `_KINDS`."""
  experts, gates = routing.experts, routing.gates
  selected, count = experts.shape[-1], model.experts
  total = gates.sum(-1, keepdims=True)
  typed = lambda new: jnp.broadcast_to(new, experts.shape).astype(experts.dtype)
  equal = jnp.broadcast_to(total / selected, gates.shape)

  def by_hash():
    # As the router of this place would have it.
    place = f'Encoder/{block}/Moe/Router'
    return typed(experts_of(experts.shape[1], selected, count, place)), equal

  def random():
    chosen, shares = routed(model, tokens, random_kernel(key, tokens, count))
    return typed(chosen), (total * shares).astype(gates.dtype)

  def oracle():
    chosen = (label[:, None] + jnp.arange(selected)) % count
    return typed(chosen[:, None]), equal

  return [lambda: (experts, gates), by_hash, random, oracle]


def random_kernel(
  key: Array, tokens: Tokens, experts: int
) -> Float[Array, 'dim experts']:
  """Weights of a router that was never trained, of variance 1 / dim."""
  dim = tokens.shape[-1]
  return jax.random.normal(key, (dim, experts)) / np.sqrt(dim)


def routed(
  model: ConfigDict, tokens: Tokens, kernel: Float[Array, 'dim experts']
) -> tuple[
  Int[Array, 'groups tokens choices'], Float[Array, 'groups tokens choices']
]:
  """The experts that a top_k router of this kernel has, and their shares."""
  x = at_least_float32(tokens)
  if model.router.unit == 'image':
    x = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
  logits = jnp.einsum('gtd,de->gte', x, kernel, precision='highest')
  chosen = highest(logits, model.router.selected)
  logits, gate = jnp.take_along_axis(logits, chosen, -1), model.router.gate
  if gate == 'uniform':
    return chosen, jnp.full_like(logits, 1 / model.router.selected)
  return chosen, summing_to_one(logits, gate == 'sigmoid')


def uniform(model: Model, config: ConfigDict) -> adversarial.Forward:
  """The model whose tokens have all experts, each with the same gate."""
  router, number = config.model.router, config.model.experts
  # Of gates that sum to 1 those of all experts do, as those of K did.
  whole = router.renormalize or router.gate == 'uniform'
  every = model.changed({'router.selected': number})

  def intervene(block, tokens, routing):
    del block
    experts, gates = routing.experts, routing.gates
    total = (gates if whole else gates[..., : router.selected]).sum(
      -1, keepdims=True
    )
    return tokens, routing._replace(
      experts=jnp.broadcast_to(
        jnp.arange(number, dtype=experts.dtype), experts.shape
      ),
      gates=jnp.broadcast_to(total / number, gates.shape),
    )

  def forward(params, images, mask, context):
    del context
    return every.apply(
      params, images, experts='dropless', mask=mask, intervene=intervene
    )

  return forward


def _condition(
  config: ConfigDict, eps: float, control: Control
) -> under.Condition:
  kind, draw = control
  name = f'{under.radius(config, eps)}, {kind} {draw or ""}'.rstrip()
  return under.Condition(name, {'eps': eps, 'control': kind, 'draw': draw})


def _right(
  columns: Columns, config: ConfigDict, eps: float, control: Control
) -> np.ndarray:
  return under.right(under.of(columns, _condition(config, eps, control)))


def _of_draws(columns: Columns, config, eps: float, controls) -> dict:
  """Of each image the mean over draws, and what it is above the learned."""
  right = partial(_right, columns, config, eps)
  draws = [right(one) for one in controls if one[0] == RANDOM]
  share, rates = np.mean(draws, axis=0), np.mean(draws, axis=1)
  learned = right((LEARNED, 0))
  return {
    'accuracy': mean(share, SHARE),
    'lowest_draw': float(rates.min()),
    'highest_draw': float(rates.max()),
    'difference': mean(share - learned, DIFFERENCE),
  }


def _numbers(rows, summary, config) -> list[tuple[str, float, dict, dict]]:
  """Each control at each radius: accuracy, and its difference."""
  found = []
  for row in rows:
    name, eps = row['control'], row['eps']
    at = summary['random'][under.radius(config, eps)]
    difference = row['against_learned']['difference']
    if name != RANDOM:
      found.append((name, eps, row['accuracy'], difference))
    elif row['draw'] == 1:
      found.append((name, eps, at['accuracy'], at['difference']))
  return found


def _accuracies(rows, summary, config) -> LinePlot:
  numbers, lines = _numbers(rows, summary, config), []
  times, x_label = under.axis(config)
  for kind in dict.fromkeys(name for name, *_ in numbers):
    here = [one for one in numbers if one[0] == kind]
    found = [accuracy for _, _, accuracy, _ in here]
    x, dashed = [times * eps for _, eps, _, _ in here], kind == LEARNED
    lines.append(Line.of(_LABELS[kind], x, found, dashed=dashed))
  title = f'Controls in place of the router, {under.attacked_by(config, rows)}'
  return LinePlot('router_controls', title, x_label, 'accuracy', lines)


def _differences(rows, summary, config) -> BarPlot:
  bars = []
  for kind, eps, _, found in _numbers(rows, summary, config):
    if kind != LEARNED:
      bars.append(Bar.of(under.radius(config, eps), found, kind, times=100))
  return BarPlot(
    'router_controls_differences',
    f'Controls less the learned router, {under.attacked_by(config, rows)}',
    'accuracy, paired difference in points',
    bars,
    unit='points',
  )


def render(results: dict) -> str:
  """Accuracies and differences, a line a control and radius."""
  config = under.config_of(results)
  lines = []
  for kind, eps, accuracy, found in _numbers(
    results['rows'], results['summary'], config
  ):
    lines.append(
      [
        _LABELS[kind],
        under.radius(config, eps),
        percent(accuracy['value']),
        points(found),
      ]
    )
  return table(['router', 'at', 'accuracy', 'less learned, points'], lines)
