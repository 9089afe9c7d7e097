"""Every example under several conditions: the common form of most studies.

A study names its conditions and gives one program for a batch under all of
them. Here the program is run over the split, goes on after the last batch that
was finished, and a row is kept of each example under each condition.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vmoe_robust.config import UserError, batch_size, moe_blocks
from vmoe_robust.data import EvalBatches, eval_batches
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate.batches import Batch, progress, rows_of
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report import table
from vmoe_robust.report.findings import Columns
from vmoe_robust.report.statistics import SHARE, mean, rate
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.target import as_floats

CLEAN = 'clean'
_OF_EXAMPLES = ('mask', 'label', 'index')
# (params, images in [0, 1], batch, what else it is given) to columns
# [conditions, batch, ...].
Program = Callable[..., Mapping[str, Array]]


@dataclasses.dataclass(frozen=True)
class Condition:
  """What every example is measured under.

  Args:
    name: as the rows of results and the records have it.
    about: what else a row says of it, such as the layer.
  """

  name: str
  about: Mapping[str, object] = dataclasses.field(default_factory=dict)


def at_radii(config: ConfigDict) -> list[Condition]:
  """The clean image, and then each radius of the attack."""
  return [
    Condition(radius(config, eps), {'eps': eps})
    for eps in (0.0, *config.attack.eps)
  ]


def radius(config: ConfigDict, eps: float) -> str:
  """A radius of the attack as rows, tables and figures name it."""
  return f'eps {table.radius(config.attack.norm, eps)}' if eps else CLEAN


def axis(config: ConfigDict) -> tuple[int, str]:
  """The axis of the attack's radii, see `table.radius_axis`."""
  return table.radius_axis(config.attack.norm)


def config_of(results: Mapping) -> ConfigDict:
  """The configuration that results.json was asked with."""
  return ConfigDict(results['asked']['config'])


def attacked_by(config: ConfigDict, rows: Sequence[Mapping]) -> str:
  """The attack and the number of examples, for the title of a figure."""
  attack, n = config.attack, rows[0]['accuracy']['n']
  return f'{attack.name} ({attack.steps} steps, {attack.norm}), {n:,} examples'


def measured(
  job: Job,
  what: str,
  conditions: Sequence[Condition],
  program: Program,
  given: Sequence[Array | np.ndarray] = (),
) -> tuple[Columns, set[int]]:
  """A row for each example and condition, and the examples skipped.

  Args:
    job: what is judged.
    what: the study's name, shown while it runs.
    conditions: in the order of the rows.
    program: is jitted here and compiled once; all conditions have the same
      columns, of which 'prediction_after' is one.
    given: arrays that the program takes besides, so that others of the same
      shapes need no other program.

  Returns:
    Columns with 'condition', 'index' and 'label'; all examples of a condition
    come before the next condition, by index.

  Raises:
    UserError: two conditions have one name.
  """
  require_distinct(conditions)
  find_in = finder(job, program)
  with progress(total(job), what, 'batch') as update:

    def find(number, batch):
      row = find_in(batch, given)
      update(number + 1, int(row['mask'].sum()))
      return row

    columns, skipped = rows_of(job, partial(batches, job), find)
  return stacked(columns, conditions), skipped


def require_distinct(conditions: Sequence[Condition]) -> None:
  """Refuses conditions that records could not tell apart.

  Raises:
    UserError: two have one name.
  """
  names = [condition.name for condition in conditions]
  for name in names:
    if names.count(name) > 1:
      raise UserError(
        f'the study would have two conditions named {name!r}; give values that '
        'differ in their first five digits'
      )


def finder(
  job: Job, program: Program
) -> Callable[[Batch, Sequence[Array | np.ndarray | None]], Columns]:
  """`(batch, what else the program is given)` to columns, compiled once."""
  subject = job.classifier

  def run(params, batch, given):
    found = program(params, as_floats(batch['image']), batch, *given)
    # The batch first, as it lies on the devices.
    return {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}

  run = jax.jit(run, out_shardings=batch_sharding(subject.mesh))

  def find(batch, given):
    found = run(subject.params, batch, tuple(given))
    return fetch({name: batch[name] for name in _OF_EXAMPLES} | found)

  return find


def with_clean(
  clean: Mapping[str, Array], attacked: Mapping[str, Array]
) -> dict[str, Array]:
  """Columns of the clean images, and below them those of attacked ones.

  Args:
    clean: columns [batch, ...].
    attacked: the same, with one or more axes of conditions before the batch.
  """
  return {
    name: jnp.concatenate([x[None], attacked[name].reshape(-1, *x.shape)])
    for name, x in clean.items()
  }


def total(job: Job) -> int:
  """How many batches a study of the job has."""
  return -(-len(job.source) // batch_size(job.config, 'study'))


def batches(job: Job, first: int) -> EvalBatches:
  """The batches of the job's examples, from number `first` on."""
  return eval_batches(
    job.config.data,
    job.source,
    batch_size=batch_size(job.config, 'study'),
    sharding=batch_sharding(job.classifier.mesh),
    first=first,
  )


def stacked(columns: Columns, conditions: Sequence[Condition]) -> Columns:
  """The columns of all conditions, one below the other."""
  order = np.argsort(columns['index'], kind='stable')
  out = {}
  for name, column in columns.items():
    column = column[order]
    if name in _OF_EXAMPLES:
      column = np.stack([column] * len(conditions), 1)
    out[name] = np.concatenate(np.moveaxis(column, 1, 0))
  labels = [condition.name for condition in conditions]
  out['condition'] = np.repeat(np.array(labels), len(order))
  return out


def of(columns: Columns, condition: Condition | str) -> Columns:
  """The columns of one condition, examples by index."""
  name = condition if isinstance(condition, str) else condition.name
  here = columns['condition'] == name
  return {key: column[here] for key, column in columns.items()}


def right(columns: Columns) -> np.ndarray:
  """Whether each row is right, by the verdict that everything here has."""
  return is_right(columns['prediction_after'], columns['label'])


def rows(
  columns: Columns,
  conditions: Sequence[Condition],
  shares: Sequence[str] = (),
) -> list[dict]:
  """A row of results for each condition.

  Args:
    columns: of `measured`.
    conditions: as it had them.
    shares: columns of shares whose mean over images is given.
  """
  found = []
  for condition in conditions:
    here = of(columns, condition)
    row = {'condition': condition.name, **condition.about}
    row['accuracy'] = rate(right(here))
    row['not_finite'] = int((here['prediction_after'] < 0).sum())
    found.append(row | {name: mean(here[name], SHARE) for name in shares})
  return found


def require_experts(job: Job, study: str) -> tuple[str, ...]:
  """The names of the sparse blocks.

  Raises:
    UserError: the model is dense.
  """
  config = job.config.model
  if not config.experts:
    raise UserError(
      f'config.study.name={study!r} asks about experts, and the model of '
      f'config.checkpoint={job.config.checkpoint!r} is dense; use a V-MoE, or '
      'a study of dense models such as corruptions'
    )
  return tuple(f'encoderblock_{i}' for i in moe_blocks(config))


def require_router(job: Job, study: str, names: Sequence[str]) -> None:
  """Refuses a router that a study is not defined for.

  Raises:
    UserError: it is another one than `names`.
  """
  name = job.config.model.router.name
  if name not in names:
    raise UserError(
      f'config.study.name={study!r} is about routers {", ".join(names)}; the '
      f'model has config.model.router.name={name!r}'
    )


def in_float32(job: Job) -> Model:
  """The model for differences and gradients, which bfloat16 would round."""
  return job.classifier.model.changed({'compute_dtype': 'float32'})


def require_whole_groups(job: Job, least: int = 1) -> int:
  """The images of a group, of which a batch and the split have whole ones.

  Args:
    job: what is studied.
    least: as many groups in a batch, and in the split.

  Raises:
    UserError: they have not.
  """
  config = job.config
  group, size = config.model.router.group_images, batch_size(config, 'study')
  many = f'{least} or more groups of config.model.router.group_images={group}'
  if size % group or size < least * group:
    low = max(size // group, least) * group
    raise UserError(
      f'config.study.{config.study.name}.batch_size={size} is not {many}, all '
      f'of them whole; use {low} or {low + group}'
    )
  if len(job.source) < least * group:
    raise UserError(
      f'config.data.split={config.data.split!r} has {len(job.source)} '
      f'examples, which are not {many}; use a larger split'
    )
  return group
