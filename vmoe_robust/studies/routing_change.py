"""`config.study.name = 'routing_change'`: does an attack change the experts?

How many tokens does an attack send to other experts (arXiv:2210.10253)? For
each sparse block and radius: 1 - IoU of a token's experts, mean over tokens and
then over images, by two definitions, and the share of tokens whose first expert
changed. Eight images are shown with the tokens that changed.
"""

from functools import partial

import jax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vmoe_robust.evaluate import adversarial, routing
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Record
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import SHARE, mean
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import pictures, questions

# What each number is called in the records, before the block's name.
_MEASURES = ('selected', 'official', 'top_1')


def run(job: Job) -> Findings:
  """Changes of routing at each radius, of the dropless model.

  It takes a forward pass an image, and a radius 3 + 2 x `config.attack.steps`
  more (a gradient counts as two); the images that are shown are attacked twice.

  Raises:
    UserError: the model is dense, or the attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'routing_change')
  config, model = job.config, job.classifier.model
  shown = under.at_radii(config)
  forward = adversarial.plain(model)
  attack = adversarial.attack(forward, config)

  def program(params, images, batch, x_adv):
    mask = batch['mask']
    logits, clean = forward(params, images, mask, ())

    def changed(x):
      after, now = forward(params, x, mask, ())
      return _columns(after, clean, now, config)

    return under.with_clean(
      _columns(logits, clean, clean, config), jax.lax.map(changed, x_adv)
    )

  return questions.Question(
    job,
    'routing change',
    shown,
    program,
    partial(_findings, job, attack, shown, blocks),
    attack,
  )


def _findings(
  job: Job, attack, shown, blocks, columns: Columns, skipped
) -> Findings:
  config = job.config
  rows = [
    row
    | {
      name: {
        block: mean(under.of(columns, condition)[f'{name}/{block}'], SHARE)
        for block in blocks
      }
      for name in _MEASURES
    }
    for condition, row in zip(shown, under.rows(columns, shown), strict=True)
  ]
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={'blocks': list(blocks), 'attack': config.attack.name},
    figures=[
      _figure(rows, blocks, config),
      pictures.examples(job, attack, columns, config.attack.eps, shown),
    ],
  )


def _columns(logits, before, after, config) -> dict[str, Array]:
  """Of each image: its class, and how each block's routing changed."""
  out, batch = {'prediction_after': classes(logits)}, len(logits)
  for block, record in before.records.items():
    wish, kept = routing.selected(record, config.model, batch)
    now, now_kept = routing.selected(after.records[block], config.model, batch)
    out[f'selected/{block}'] = routing.change(wish, now)
    out[f'official/{block}'] = routing.change(kept, now_kept, nothing=0.0)
    first, then = (
      heaviest(r, config, batch) for r in (record, after.records[block])
    )
    out[f'top_1/{block}'] = (first != then).mean(-1)
  return out


def heaviest(
  record: Record, config: ConfigDict, batch: int
) -> Int[Array, 'batch tokens']:
  """Each token's expert of the largest gate; -1 is none."""
  first = routing.by_weight(record, config.model)[..., 0]
  images = first.shape[0] * record.images
  return first.reshape(images, -1)[:batch]


def _figure(rows, blocks, config) -> LinePlot:
  times, x_label = under.axis(config)
  lines, x = [], [times * row['eps'] for row in rows]
  for measure in _MEASURES:
    for block in blocks:
      found = [row[measure][block] for row in rows]
      panel = {
        'selected': '1 - IoU of the selected experts',
        'official': '1 - IoU after capacity, as the paper counts',
        'top_1': 'tokens whose first expert changed',
      }[measure]
      lines.append(Line.of(block, x, found, panel))
  title = f'Routing under {under.attacked_by(config, rows)}'
  return LinePlot('routing_change', title, x_label, 'changed', lines)


def render(results: dict) -> str:
  """Accuracy and changes, a line a radius and block."""
  lines = []
  for row in results['rows']:
    for block in results['summary']['blocks']:
      shown = [row[name][block]['value'] for name in _MEASURES]
      lines.append(
        [
          row['condition'],
          block,
          percent(row['accuracy']['value']),
          *('-' if value is None else percent(value) for value in shown),
        ]
      )
  return table(
    ['condition', 'block', 'accuracy', '1 - IoU', 'official', 'top-1 changed'],
    lines,
  )
