"""`config.study.name = 'load'`: can an attack unbalance the experts?

With limited capacity, images of a group share the experts' slots. Load and
drops are measured on clean images, under an attack on the loss of the class,
and under one that makes experts overflow. All of it depends on which images are
together in a group: here those that follow each other in the split.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import plan
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import (
  DIFFERENCE,
  LEVEL,
  RESAMPLES,
  SHARE,
  mean,
  paired,
  rate,
)
from vmoe_robust.report.table import percent, table
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import crowding, questions

CLASS, OVERFLOW = 'class', 'overflow'
# Numbers of a group, and between which numbers they lie if that is known.
_LIMITS = {'dropped': SHARE, 'max_over_mean': None, 'cv': None}


def run(job: Job) -> Findings:
  """Load, drops and accuracy with capacity, clean and under both attacks.

  The attack on the class is that of other commands, on the dropless model. The
  one on capacity raises the share of choices that find no room, of a whole
  group. It takes 2 forward passes an image, and a radius 8 + 4 x
  `config.attack.steps` more (a gradient counts as two).

  Raises:
    UserError: the model is dense, its router is neither top_k nor hash, the
      batch or the split has no whole groups, or the attack is of another kind.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  blocks = under.require_experts(job, 'load')
  under.require_router(job, 'load', ('top_k', 'hash'))
  config, model = job.config, job.classifier.model
  group = under.require_whole_groups(job)
  attack = adversarial.attack(
    crowding.crowded(model), config, crowding.overflow
  )
  radii = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv):
    look = lambda x: _columns(model, params, x, batch['mask'])

    def at_radius(pair):
      eps, x = pair
      found = look(x), look(attack(params, images, batch, eps))
      return jax.tree.map(lambda *both: jnp.stack(both), *found)

    attacked = jax.lax.map(at_radius, (radii, x_adv))
    return under.with_clean(look(images), attacked)

  return questions.Question(
    job,
    'load',
    _conditions(config),
    program,
    partial(_findings, blocks, group, config),
    adversarial.attack(adversarial.plain(model), config),
  )


def _findings(blocks, group, config, columns: Columns, skipped) -> Findings:
  rows = under.rows(columns, _conditions(config))
  clean = _groups(under.of(columns, under.CLEAN), blocks, group)
  if not len(clean[f'{blocks[0]}/load']):
    raise UserError(
      f'none of the groups of config.model.router.group_images={group} images '
      f'is whole, for {len(skipped)} images were skipped; use another '
      'config.data.split'
    )
  for row in rows:
    here = under.of(columns, row['condition'])
    row |= _row(here, _groups(here, blocks, group), clean, blocks)
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'attack': config.attack.name,
      'is_batch_dependent': True,
      **_capacity(clean, blocks[0], config),
    },
    figures=[_figure(rows, blocks, config)],
  )


def _columns(model, params, images, mask) -> dict[str, Array]:
  """Of each image its classes, its choices and those of its group."""
  logits, aux = model.apply(params, images, experts='capacity', mask=mask)
  alone, _ = model.apply(params, images, experts='dropless', mask=mask)
  found = {
    'prediction_after': classes(logits),
    'prediction_dropless': classes(alone),
  }
  for block, record in aux.records.items():
    of_group = lambda a, n=record.images: jnp.repeat(a, n, axis=0)[: len(mask)]
    share, largest, spread = crowding.load(record)
    found[f'{block}/dropped'] = of_group(share)
    found[f'{block}/max_over_mean'] = of_group(largest)
    found[f'{block}/cv'] = of_group(spread)
    found[f'{block}/load'] = of_group(
      crowding.count_of(record, crowding.chosen(record))
    )
    found['whole_group'] = of_group(mask.reshape(-1, record.images).all(1))
  return found


def _conditions(config) -> list[under.Condition]:
  return [
    under.Condition(under.CLEAN, {'eps': 0.0, 'attacked': ''}),
    *(
      under.Condition(
        f'{name}, {under.radius(config, eps)}', {'eps': eps, 'attacked': name}
      )
      for eps in config.attack.eps
      for name in (CLASS, OVERFLOW)
    ),
  ]


def _groups(here: Columns, blocks, group: int) -> Columns:
  """One row a whole group, of what all its images share.

  A group that the end of the split, or images that could not be read, leave
  with fewer images has more room for each, and is left out.
  """
  first = here['whole_group'] & (here['index'] % group == 0)
  names = (*_LIMITS, 'load')
  return {
    f'{block}/{name}': here[f'{block}/{name}'][first]
    for block in blocks
    for name in names
  }


def _row(here: Columns, groups: Columns, clean: Columns, blocks) -> dict:
  dropped, before = (
    np.mean([found[f'{block}/dropped'] for block in blocks], 0)
    for found in (groups, clean)
  )
  dropless = is_right(here['prediction_dropless'], here['label'])
  return {
    'groups': len(dropped),
    'dropped': mean(dropped, SHARE),
    'more_dropped': mean(dropped - before, DIFFERENCE),
    'accuracy_dropless': rate(dropless),
    'capacity_less_dropless': paired(under.right(here), dropless),
    'blocks': {
      block: {
        **{
          name: mean(groups[f'{block}/{name}'], limits)
          for name, limits in _LIMITS.items()
        },
        **_pooled(groups[f'{block}/load']),
      }
      for block in blocks
    },
  }


def _pooled(load: Int[np.ndarray, 'groups experts']) -> dict:
  """Balance of all groups' choices together, bootstrap over groups.

  Small groups are uneven by chance, even where each expert gets its share of
  the whole split.
  """
  number = len(load)
  draws = np.random.default_rng(0).multinomial(
    number, np.full(number, 1 / number), RESAMPLES
  )
  tail = 50 * (1 - LEVEL)
  names, found = ('split_max_over_mean', 'split_cv'), {}
  values = crowding.balance(load.sum(0, keepdims=True).astype(float))
  for name, value, again in zip(
    names, values, crowding.balance(draws @ load), strict=True
  ):
    low, high = np.percentile(again, [tail, 100 - tail]).tolist()
    # Of groups that are all alike each draw is the same, not exact.
    interval = [low, high] if (load != load[0]).any() else None
    found[name] = {'value': float(value[0]), 'interval': interval, 'n': number}
  return found


def _capacity(clean: Columns, block: str, config: ConfigDict) -> dict:
  """What there is room for in a group."""
  router, experts = config.model.router, config.model.experts
  choices = int(clean[f'{block}/load'][0].sum())
  tokens = choices // router.selected
  slots = plan.capacity(
    tokens, router.selected, router.capacity_factor, experts
  )
  slots = min(slots, tokens + -tokens % 4)
  return {
    'group_images': router.group_images,
    'capacity_factor': float(router.capacity_factor),
    'choices_of_a_group': choices,
    'slots_of_an_expert': slots,
    # A multiple of four, so that there may be more room than the factor says.
    'slots_over_choices': slots * experts / choices,
  }


def _figure(rows: list[dict], blocks, config: ConfigDict) -> LinePlot:
  right, lines = 'right images (%)', []
  scale, x_label = under.axis(config)
  lines += _lines(rows, scale, right, 100, lambda row: row['accuracy'])
  dropless = lambda row: row['accuracy_dropless']
  lines += _lines(rows, scale, right, 100, dropless, ', judged dropless')
  for block in blocks:
    lost = lambda row, block=block: row['blocks'][block]['dropped']
    lines += _lines(
      rows, scale, f'{block}: choices without room (%)', 100, lost
    )
  for block in blocks:
    full = lambda row, block=block: row['blocks'][block]['max_over_mean']
    lines += _lines(
      rows, scale, f'{block}: max / mean load of a group', 1, full
    )
  router, groups = config.model.router, rows[0]['groups']
  title = (
    f'Load in {groups:,} groups of {router.group_images}, capacity '
    f'{router.capacity_factor:g}\n{under.attacked_by(config, rows)}'
  )
  return LinePlot(
    'load',
    title,
    x_label,
    "what the panel's title says",
    lines,
    unit='',
  )


def _lines(
  rows, scale: float, panel: str, times: float, of, judged=''
) -> list[Line]:
  """A line for each attack, of the estimate that a row has."""
  clean, *rest = rows
  lines = []
  for name, label in ((CLASS, 'loss of the class'), (OVERFLOW, OVERFLOW)):
    here = [clean, *(row for row in rest if row['attacked'] == name)]
    found = [of(row) for row in here]
    x = [scale * row['eps'] for row in here]
    line = Line.of(label + judged, x, found, panel, bool(judged), times)
    lines.append(line)
  return lines


def render(results: dict) -> str:
  """A line a condition, and one for each of its blocks below."""
  lines, below, summary = [], [], results['summary']
  for row in results['rows']:
    numbers = (row[n]['value'] for n in ('accuracy', 'accuracy_dropless'))
    both = row['capacity_less_dropless']
    lines.append(
      [
        row['condition'],
        *map(percent, numbers),
        f'{both["only_first"]} / {both["only_second"]}',
        percent(row['dropped']['value']),
        f'{100 * row["more_dropped"]["value"]:+.1f}',
      ]
    )
    for block, found in row['blocks'].items():
      values = {name: one['value'] for name, one in found.items()}
      below.append(
        [
          row['condition'],
          block,
          percent(values['dropped']),
          *(f'{values[n]:.2f}' for n in ('max_over_mean', 'cv')),
          *(f'{values[f"split_{n}"]:.2f}' for n in ('max_over_mean', 'cv')),
        ]
      )
  heads = ['', 'accuracy', 'dropless', 'won / lost', 'no room', 'than clean']
  more = ['', 'block', 'no room', 'max / mean', 'CV', 'of the split', 'CV']
  return (
    f'{table(heads, lines)}\n\n{table(more, below)}\n'
    f'depends on the batch: groups of {summary["group_images"]} images, '
    f'{summary["slots_of_an_expert"]} slots an expert for '
    f'{summary["choices_of_a_group"]} choices'
  )
