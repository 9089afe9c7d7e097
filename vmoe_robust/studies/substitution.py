"""`config.study.name = 'substitution'`: does it matter which expert runs?

Experts are redundant where others do as well (arXiv:2210.10253). The chosen
experts are replaced, in one sparse block or in all, on clean images and on
x_adv made against the unchanged model. A choice keeps its gate, so that only
the expert is another one.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.report.figures import Bar, BarPlot, Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices, questions
from vmoe_robust.studies import conditions as under

# Their places are what the program is told.
_KINDS = ('unchanged', 'rank', 'random', 'dropped', 'shuffled', 'uniform')
_ALL = 'all'


def run(job: Job) -> Findings:
  """Accuracy under each substitution, of the dropless model.

  There is the unchanged model, and for each sparse block and for all of them
  together E + 1 + K changes, of E experts and K choices, one more for K > 1
  (uniform gates). With C such conditions an image takes C forward passes, and
  a radius C + 2 + 2 x `config.attack.steps` more (a gradient counts as two).
  One program serves all: a condition is data to it.

  A choice keeps its gate. Rank r <= K is a choice already, so that this
  expert then runs twice. A random expert is another one than the first, for
  each token, or for each image where images are routed. Of
  shuffled tokens each takes the choices of a token of its image, in an order
  drawn at random, which leaves one in T tokens where it was.
  Uniform gates keep their sum.

  Raises:
    UserError: the model is dense, or its router is not top_k, or the attack is
      of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'substitution')
  under.require_router(job, 'substitution', ('top_k',))
  config, model = job.config, job.classifier.model
  radii = (0.0, *config.attack.eps)
  changes = _changes(config.model, blocks)
  shown = [
    _condition(config, eps, *change) for eps in radii for change in changes
  ]
  parameters = jnp.array(
    [
      (_KINDS.index(kind), number, -1 if at == _ALL else blocks.index(at))
      for kind, number, at in changes
    ]
  )

  def program(params, images, batch, x_adv):
    x = jnp.concatenate([images[None], x_adv])
    keys = _keys(config.seed, batch['index'])
    one = lambda x, change: _predicted(
      model, config, blocks, params, x, batch['mask'], keys, change
    )
    found = jax.lax.map(
      lambda x: jax.lax.map(lambda change: one(x, change), parameters), x
    )
    return {'prediction_after': found.reshape(-1, len(images))}

  return questions.Question(
    job,
    'substitution',
    shown,
    program,
    partial(_findings, shown, blocks, len(changes), config),
    adversarial.attack(adversarial.plain(model), config),
  )


def _findings(
  shown, blocks, number: int, config, columns: Columns, skipped
) -> Findings:
  rows = under.rows(columns, shown)
  for row in rows:
    base = _condition(config, row['eps'], 'unchanged', 0, _ALL)
    both = [under.right(under.of(columns, c)) for c in (row['condition'], base)]
    row['against_unchanged'] = paired(*both)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'blocks': list(blocks),
      'attack': config.attack.name,
      'conditions_a_radius': number,
    },
    figures=[_by_rank(rows, config), _others(rows, config)],
  )


def _changes(model: ConfigDict, blocks) -> list[tuple[str, int, str]]:
  """Kind, its number and where, the unchanged model first."""
  selected = model.router.selected
  found = [('unchanged', 0, _ALL)]
  for at in (*blocks, _ALL) if len(blocks) > 1 else (_ALL,):
    found += [('rank', r, at) for r in range(2, model.experts + 1)]
    found += [('random', 0, at)] if model.experts > 1 else []
    found += [('dropped', j, at) for j in range(1, selected + 1)]
    # Where images are routed, all tokens of one have the same choices.
    found += [('shuffled', 0, at)] if model.router.unit == 'token' else []
    found += [('uniform', 0, at)] if selected > 1 else []
  return found


def _condition(config, eps, kind, number, at) -> under.Condition:
  what = f'{kind} {number}' if number else kind
  where = '' if kind == 'unchanged' else f', {at}'
  about = {'eps': eps, 'kind': kind, 'number': number, 'block': at}
  name = f'{under.radius(config, eps)}, {what}{where}'
  return under.Condition(name, about)


def _keys(seed, index):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


def _predicted(model: Model, config, blocks, params, x, mask, keys, change):
  kind, number, at = change

  def intervene(block, tokens, routing):
    place = blocks.index(block)
    keys_here = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
    scores = choices.scores_of(config, params, block, routing)
    unit = config.model.router.unit
    options = _options(routing, scores, number, keys_here, unit)
    here = jnp.where((at < 0) | (at == place), kind, 0)
    experts, gates = jax.lax.switch(here, options)
    return tokens, routing._replace(experts=experts, gates=gates)

  logits = model.apply(
    params, x, experts='dropless', mask=mask, intervene=intervene
  )[0]
  return classes(logits)


def _options(routing, scores, number, keys, unit):
  """Functions to (experts, gates), in the order of `_KINDS`."""
  experts, gates, count = routing.experts, routing.gates, scores.shape[-1]
  first = experts[..., 0]
  by_image = lambda a: a.reshape(len(keys), -1, *a.shape[2:])

  def instead(new):
    return experts.at[..., 0].set(new.astype(experts.dtype)), gates

  def rank():
    order = jnp.argsort(-scores, axis=-1, stable=True)
    return instead(jnp.take(order, number - 1, axis=-1))

  def random():
    tokens = by_image(first)
    shape = tokens.shape[1:] if unit == 'token' else (1,)
    draw = lambda key: jax.random.randint(key, shape, 1, count)
    step = jnp.broadcast_to(jax.vmap(draw)(keys), tokens.shape)
    return instead((first + step.reshape(first.shape)) % count)

  def dropped():
    mine = jnp.arange(experts.shape[-1]) == number - 1
    return jnp.where(mine, count, experts).astype(experts.dtype), gates

  def shuffled():
    mix = jax.vmap(lambda key, a: jax.random.permutation(key, a))
    return mix(keys, by_image(experts)).reshape(experts.shape), gates

  def uniform():
    return experts, jnp.broadcast_to(gates.mean(-1, keepdims=True), gates.shape)

  return [lambda: (experts, gates), rank, random, dropped, shuffled, uniform]


def _by_rank(rows, config) -> LinePlot:
  lines = []
  for at in dict.fromkeys(r['block'] for r in rows if r['kind'] == 'rank'):
    for eps in dict.fromkeys(row['eps'] for row in rows):
      mine = [
        row
        for row in rows
        if row['eps'] == eps
        and (row['kind'] == 'unchanged' or row['kind'] == 'rank')
        and (row['kind'] == 'unchanged' or row['block'] == at)
      ]
      found = [row['accuracy'] for row in mine]
      x = [row['number'] or 1 for row in mine]
      panel = 'all sparse blocks' if at == _ALL else at
      lines.append(Line.of(under.radius(config, eps), x, found, panel))
  if not lines:  # one expert has no other rank
    found = [row['accuracy'] for row in rows if row['kind'] == 'unchanged']
    lines = [Line.of('eps', [1] * len(found), found)]
  title = (
    f'Rank r in place of the first expert, {under.attacked_by(config, rows)}'
  )
  return LinePlot(
    'substitution', title, 'rank of the expert that runs', 'accuracy', lines
  )


def _others(rows, config) -> BarPlot:
  bars = [
    Bar.of(
      f'{row["kind"]} {row["number"] or ""}'.strip(),
      row['accuracy'],
      under.radius(config, row['eps']),
    )
    for row in rows
    if row['block'] == _ALL and row['kind'] != 'rank'
  ]
  title = f'Choices changed in all blocks, {under.attacked_by(config, rows)}'
  return BarPlot('substitution_others', title, 'accuracy', bars)


def render(results: dict) -> str:
  """Accuracy, and its difference from the unchanged model, a line each."""
  lines = []
  for row in results['rows']:
    change = row['against_unchanged']['difference']['value']
    lines.append(
      [
        row['condition'],
        percent(row['accuracy']['value']),
        f'{100 * change:+.1f}',
      ]
    )
  return table(['condition', 'accuracy', 'against unchanged'], lines)
