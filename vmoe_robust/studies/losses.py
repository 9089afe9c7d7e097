"""`config.study.name = 'losses'`: which loss makes the stronger attack?

Three attacks of the same length raise the loss of the class, the routers'
auxiliary loss, and the sum of both. If balance between experts mattered to an
image's class, the second would break images too.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from vmoe_robust.config import require_routers_loss
from vmoe_robust.evaluate import adversarial, routing, target
from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import mean, paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import cross_entropy
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import questions

ATTACKED = {
  'class': 'loss of the class',
  'auxiliary': "routers' auxiliary loss",
  'both': 'both',
}
_LOSSES = ('class_loss', 'auxiliary_loss')


def run(job: Job) -> Findings:
  """Accuracy, losses and routing under each attack, of the dropless model.

  It takes a forward pass an image, and a radius 3 x (3 + 2 x
  `config.attack.steps`) more (a gradient counts as two).

  Raises:
    UserError: the model is dense, its router has no auxiliary loss, or the
      attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  under.require_experts(job, 'losses')
  under.require_router(job, 'losses', ('top_k',))
  config, model = job.config, job.classifier.model
  require_routers_loss(config.model, "config.study.name='losses'")
  shown = _conditions(config)
  forward = adversarial.plain(model)
  by_class, *others = (
    adversarial.attack(forward, _raising(config, name)) for name in ATTACKED
  )
  radii = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv):
    logits, clean = forward(params, images, batch['mask'], ())

    def look(x):
      after, now = forward(params, x, batch['mask'], ())
      return _columns(after, clean, now, batch, config)

    def at_radius(pair):
      eps, x = pair
      found = [look(x)]
      found += [look(attack(params, images, batch, eps)) for attack in others]
      return jax.tree.map(lambda *each: jnp.stack(each), *found)

    return under.with_clean(
      _columns(logits, clean, clean, batch, config),
      jax.lax.map(at_radius, (radii, x_adv)),
    )

  return questions.Question(
    job, 'losses', shown, program, partial(_findings, shown, config), by_class
  )


def _findings(shown, config, columns: Columns, skipped) -> Findings:
  rows = under.rows(columns, shown, ('selected',))
  for row in rows:
    here = under.of(columns, row['condition'])
    row |= {name: mean(here[name]) for name in _LOSSES}
  for row in rows[1:]:
    by_class = f'class, {under.radius(config, row["eps"])}'
    row['less_than_class'] = paired(
      under.right(under.of(columns, by_class)),
      under.right(under.of(columns, row['condition'])),
    )
  start = config.attack.random_start
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={'attack': config.attack.name, 'random_start': start},
    figures=[_figure(rows, config)],
  )


def _conditions(config: ConfigDict) -> list[under.Condition]:
  return [
    under.Condition(under.CLEAN, {'eps': 0.0, 'attacked': ''}),
    *(
      under.Condition(
        f'{name}, {under.radius(config, eps)}', {'eps': eps, 'attacked': name}
      )
      for eps in config.attack.eps
      for name in ATTACKED
    ),
  ]


def _raising(config: ConfigDict, attacked: str) -> ConfigDict:
  """The configuration whose attack raises a loss of `ATTACKED`."""
  config = config.copy_and_resolve_references()
  if attacked != 'class':
    weight = config.study.losses.auxiliary_weight
    config.attack.class_weight = float(attacked == 'both')
    config.attack.auxiliary_weight = float(weight)
  return config


def _columns(logits, before, after, batch, config) -> dict[str, Array]:
  """Of each image: class, both losses, and how far the routing changed."""
  changes, size, label = [], len(logits), batch['label']
  for block, record in before.records.items():
    wish, _ = routing.selected(record, config.model, size)
    now, _ = routing.selected(after.records[block], config.model, size)
    changes.append(routing.change(wish, now))
  return {
    'prediction_after': classes(logits),
    'class_loss': cross_entropy(logits, label),
    'auxiliary_loss': target.auxiliary(after, size),
    'selected': jnp.stack(changes).mean(0),
  }


def _figure(rows: list[dict], config: ConfigDict) -> LinePlot:
  clean, *rest = rows
  panels = {
    'accuracy': 'right images',
    'selected': '1 - IoU of the selected experts, mean over blocks',
  }
  lines = []
  times, x_label = under.axis(config)
  for number, panel in panels.items():
    for name, label in ATTACKED.items():
      here = [clean, *(row for row in rest if row['attacked'] == name)]
      found = [row[number] for row in here]
      x = [times * row['eps'] for row in here]
      # Dashed, so that a line below it is seen.
      dashed = name == 'both'
      lines.append(Line.of(label, x, found, panel, dashed))
  title = f'What is attacked: {under.attacked_by(config, rows)}'
  return LinePlot('losses', title, x_label, 'share', lines)


def render(results: dict) -> str:
  """A line a radius and attacked loss."""
  lines = []
  for row in results['rows']:
    less = row.get('less_than_class')
    number = lambda name, row=row: row[name]['value']
    lines.append(
      [
        row['condition'],
        percent(number('accuracy')),
        '-' if less is None else f'{less["p"]:.2g}',
        *(
          '-' if number(name) is None else f'{number(name):.4g}'
          for name in _LOSSES
        ),
        percent(number('selected')),
      ]
    )
  return (
    table(
      ['attacked', 'accuracy', 'p', 'class loss', 'auxiliary', '1 - IoU'], lines
    )
    + "\np: McNemar's exact test against the attack on the class alone"
  )
