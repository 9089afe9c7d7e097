"""`config.study.name = 'batch_dependence'`: do neighbours decide a prediction?

With a limited capacity, images of a group share the experts' slots, so that an
image's prediction may depend on what else is in the batch (arXiv:2402.05526).
Each image is held, and its neighbours, their order, padding and the size of the
group vary; then its neighbours alone are attacked, for another prediction than
that of the batch in order, and as a control as many random points of theirs are
tried as the attack has steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError, batch_size
from vmoe_robust.evaluate import adversarial, routing
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.report.figures import Bar, BarPlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import SHARE, mean, paired, rate
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under

ORDER, REVERSED, PADDING = 'in order', 'reversed', 'padding'
SMALL, DROPLESS = 'groups of one', 'dropless'
ATTACKED, LUCK = 'neighbours attacked', 'neighbours at random'


def run(job: Job) -> Findings:
  """How often a prediction flips, against the batch in order, by capacity.

  With groups of G images and N draws of neighbours it takes 4 + N + G forward
  passes an image, and a radius 3 x G x (2 + `config.attack.steps`) more (a
  gradient counts as two).

  Raises:
    UserError: the model is dense, its images share no slots, or the batch has
      no whole groups.
  """
  under.require_experts(job, 'batch_dependence')
  under.require_router(job, 'batch_dependence', ('top_k', 'expert_choice'))
  config, model = job.config, job.classifier.model
  group, size = _check(job), batch_size(config, 'study')
  shown = _conditions(config)
  draws = [
    np.random.default_rng([config.seed, draw]).permutation(size)
    for draw in range(config.study.batch_dependence.draws)
  ]
  small = model.changed({'router.group_images': 1})
  forward, value = _of_the_held(model, group), _crowding(group, config)
  attacks = [
    adversarial.attack(forward, config, value, luck) for luck in (False, True)
  ]

  def program(params, images, batch):
    mask = batch['mask']

    def prediction(x, mask=mask, model=model, experts='capacity'):
      return classes(model.apply(params, x, experts=experts, mask=mask)[0])

    def permuted(order):
      found = prediction(images[order], mask[order])
      return found[jnp.argsort(order)]

    backwards = np.arange(size).reshape(-1, group)[:, ::-1].reshape(-1)
    in_order = prediction(images)
    found = [in_order, permuted(backwards)]
    found += [permuted(drawn_order(mask, draw)) for draw in draws]
    found.append(
      _each_held(group, lambda held: prediction(images, mask & held), size)
    )
    found.append(prediction(images, model=small))
    found.append(prediction(images, experts='dropless'))

    def attacked(attack, eps):
      def of_held(held):
        place = held.reshape(-1, group).argmax(1)
        # What is no class flips to any.
        label = _from_place(jnp.maximum(in_order, 0), place)
        goal = batch | {'label': label}
        x = attack(params, images, goal, eps, (images, held, mask))
        return prediction(_held_clean(x, images, held))

      return _each_held(group, of_held, size)

    radii = jnp.float32(config.attack.eps)
    broken = [jax.lax.map(partial(attacked, one), radii) for one in attacks]
    return {'prediction_after': jnp.concatenate([jnp.stack(found), *broken])}

  columns, skipped = under.measured(job, 'neighbours', shown, program)
  return _findings(columns, skipped, shown, config)


def _check(job: Job) -> int:
  """The images of a group."""
  config = job.config
  if config.model.router.selected == config.model.experts:
    raise UserError(
      f'config.model.router.selected={config.model.router.selected} are all '
      'experts, so that no neighbour can want one more; use a model of fewer'
    )
  if config.model.router.group_images == 1:
    raise UserError(
      "config.study.name='batch_dependence' is about images that share slots, "
      'and the model has config.model.router.group_images=1; nothing can change'
    )
  return under.require_whole_groups(job, least=2)  # images and other ones


def _conditions(config: ConfigDict) -> list[under.Condition]:
  draws = config.study.batch_dependence.draws
  plain = [ORDER, REVERSED, *map(_draw, range(draws))]
  plain += [PADDING, SMALL, DROPLESS]
  return [
    *(under.Condition(name, {'eps': 0.0}) for name in plain),
    *(
      under.Condition(f'{what}, {under.radius(config, e)}', {'eps': e})
      for what in (ATTACKED, LUCK)
      for e in config.attack.eps
    ),
  ]


def _draw(number: int) -> str:
  return f'neighbours {number + 1}'


def drawn_order(
  mask: Bool[Array, 'batch'], draw: Int[np.ndarray, 'batch']
) -> Int[Array, 'batch']:
  """Images in the order of a draw, and padding behind them.

  So padding is nobody's new neighbour, but of the last group.
  """
  return jnp.argsort(jnp.where(mask, draw, len(draw)))


def _each_held(group: int, predictions, size: int):
  """Each image's prediction when it is the one of its group that is held."""
  place = np.arange(size) % group
  held = jnp.asarray(place == np.arange(group)[:, None])
  found = jax.lax.map(predictions, held)  # compiled once
  return found[place, np.arange(size)]


def _from_place(values, place):
  """What the held image of each group has, for all of its group."""
  groups = values.reshape(len(place), -1, *values.shape[1:])
  own = groups[jnp.arange(len(place)), place]
  return jnp.repeat(own, groups.shape[1], axis=0)


def _held_clean(x, images, held):
  return jnp.where(held[:, None, None, None], images, x)


def _of_the_held(model: Model, group: int) -> adversarial.Forward:
  """A forward pass whose logits are those of the group's held image."""

  def forward(params, x, mask, context):
    images, held, _ = context
    x = _held_clean(x, images, held)
    logits, aux = model.apply(params, x, experts='capacity', mask=mask)
    place = held.reshape(-1, group).argmax(1)
    return _from_place(logits, place), aux

  return forward


def _crowding(group: int, config: ConfigDict) -> adversarial.Value:
  """What the attack raises: how much neighbours want the held image's experts.

  Neighbours reach the held image only through who finds a slot, of which the
  loss of its class has no gradient. So their probabilities of the experts that
  its tokens selected, or that picked them, are raised in all sparse blocks.
  """

  def value(logits, aux, goal):
    _, held, mask = goal.context
    held, others = (x.reshape(-1, group) for x in (held, mask & ~held))
    total = jnp.zeros(len(held))
    for record in aux.records.values():
      wish = record.routing.probabilities
      of_tokens = partial(jnp.repeat, repeats=wish.shape[1] // group, axis=1)
      chosen, _ = routing.selected(record, config.model, len(logits))
      chosen = chosen.reshape(wish.shape)
      own = of_tokens(held)[..., None]
      wanted = jax.lax.stop_gradient((chosen * own).sum(1))
      demand = (wish * of_tokens(others)[..., None]).sum(1)
      total += (demand * wanted).sum(-1)
    return jnp.repeat(total, group)[: len(logits)]

  return value


def _findings(columns: Columns, skipped, shown, config) -> Findings:
  prediction = {
    one.name: under.of(columns, one)['prediction_after'] for one in shown
  }
  flips = {n: p != prediction[ORDER] for n, p in prediction.items()}
  rows = under.rows(columns, shown)
  draws = [*map(_draw, range(config.study.batch_dependence.draws))]
  rows = [row for row in rows if row['condition'] not in draws]
  for row in rows:
    row['flips'] = rate(flips[row['condition']])
    if row['condition'].startswith(ATTACKED):
      luck = row['condition'].replace(ATTACKED, LUCK)
      row['more_than_luck'] = paired(flips[row['condition']], flips[luck])
  drawn = [flips[name] for name in draws]
  ever = rate(np.any(drawn, 0))
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'other_neighbours': mean(np.mean(drawn, 0), SHARE),
      'ever_flipped': ever,
      'draws': len(drawn),
      'group_images': config.model.router.group_images,
      'capacity_factor': float(config.model.router.capacity_factor),
      'batch_size': batch_size(config, 'study'),
    },
    figures=[_figure(rows, ever, config)],
  )


def _figure(rows: list[dict], ever: dict, config: ConfigDict) -> BarPlot:
  found = [(r['condition'], r['eps'], r['flips']) for r in rows[1:]]
  draws = config.study.batch_dependence.draws
  found.insert(1, (f'other neighbours, any of {draws} draws', 0.0, ever))
  bars = []
  for name, eps, flips in found:
    group = name.split(', ')[0] if eps else 'no attack'
    bars.append(Bar.of(name, flips, group))
  router = config.model.router
  title = (
    f'Batch dependence, groups of {router.group_images}, capacity '
    f'{router.capacity_factor:g}\n{under.attacked_by(config, rows)}'
  )
  return BarPlot('batch_dependence', title, 'predictions that flip', bars)


def render(results: dict) -> str:
  """A line a condition, and the draws of neighbours below."""
  lines, summary = [], results['summary']
  for row in results['rows']:
    low, high = row['flips']['interval']
    lines.append(
      [
        row['condition'],
        percent(row['accuracy']['value']),
        percent(row['flips']['value']),
        f'{100 * low:.1f} to {100 * high:.1f}',
        *_against_luck(row),
      ]
    )
  heads = ['condition', 'accuracy', 'flips', '95% interval', 'less random', 'p']
  each, ever = (
    percent(summary[name]['value'])
    for name in ('other_neighbours', 'ever_flipped')
  )
  return (
    f'{table(heads, lines)}\nother neighbours flip {each} of the predictions a '
    f'draw, and {ever} in one of {summary["draws"]} draws'
  )


def _against_luck(row: dict) -> list[str]:
  """By how many points an attack flips more than luck, and McNemar's p."""
  if 'more_than_luck' not in row:
    return ['-', '-']
  found = row['more_than_luck']
  return [f'{100 * found["difference"]["value"]:+.1f}', f'{found["p"]:.2g}']
