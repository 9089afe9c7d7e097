"""Questions about the same x_adv, which are made once for all of them.

Many studies show a model the x_adv of one attack: that of `config.attack` on
the plain dropless model. Each of them says here what it asks of a batch and of
its x_adv, as a `Question`. Studies of one start are asked batch by batch: a
batch is attacked once, by a program of its own, every study looks at its x_adv,
and then the next batch comes. So no x_adv are kept but those of one batch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from vmoe_robust.config import batch_size, differences
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.batches import Rows, progress
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.robustness.target import as_floats
from vmoe_robust.studies import conditions as under


@dataclasses.dataclass(frozen=True)
class Question:
  """What a study asks of each batch and its x_adv.

  Args:
    job: what is judged.
    what: the study's name, shown while it runs.
    conditions: in the order of the rows.
    program: `(params, images, batch, x_adv, *given)` to columns [conditions,
      batch, ...], of which 'prediction_after' is one; it is jitted. x_adv has
      a leading axis of the radii `config.attack.eps`.
    findings: what is found, of all columns and of the examples skipped.
    attack: makes x_adv, of the plain model by `config.attack`; None: the
      program is given None for x_adv.
    given: arrays that the program takes besides.
    source: whose x_adv they are; None: the job's model.
  """

  job: Job
  what: str
  conditions: Sequence[under.Condition]
  program: under.Program
  findings: Callable[[Columns, set[int]], Findings]
  attack: adversarial.Attack | None
  given: Sequence[Array | np.ndarray] = ()
  source: Classifier | None = None

  def __post_init__(self):
    under.require_distinct(self.conditions)

  @property
  def attacked(self) -> Classifier:
    """The model whose x_adv are looked at."""
    return self.source or self.job.classifier


def answer(question: Question) -> Findings:
  """What is found by a question alone; see `answers`."""
  return answers([question])[0]


def answers(questions: Sequence[Question]) -> list[Findings]:
  """What is found by questions about the same x_adv; see `alike`.

  Each goes on after the last batch that it has finished, and a batch that all
  of them have finished is not attacked again.

  Raises:
    UserError: no example could be read, or a work directory has the beginning
      of another run.
  """
  first = questions[0]
  attacked, params = _x_adv(first), first.attacked.params
  finders = [under.finder(one.job, one.program) for one in questions]
  rows = [Rows(one.job) for one in questions]
  start = min(map(len, rows))
  several = len(questions) > 1
  what = f'{len(questions)} studies' if several else first.what
  with (
    progress(under.total(first.job), what, 'batch') as update,
    contextlib.closing(under.batches(first.job, start)) as batches,
  ):
    for number, batch in enumerate(batches, start):
      x_adv = attacked(params, batch)
      for one, find, found in zip(questions, finders, rows, strict=True):
        if len(found) == number:
          found.put(row := find(batch, (x_adv, *one.given)))
      update(number + 1, int(row['mask'].sum()))
  out = []
  for one, found in zip(questions, rows, strict=True):
    columns, skipped = found.columns()
    out.append(one.findings(under.stacked(columns, one.conditions), skipped))
  return out


def alike(one: Question, other: Question) -> bool:
  """Whether two questions are about the same x_adv of the same batches."""
  sizes = {batch_size(each.job.config, 'study') for each in (one, other)}
  return (
    one.attack is not None
    and other.attack is not None
    and one.attacked.params is other.attacked.params
    and len(sizes) == 1
    and not differences(one.job.config, other.job.config, ('config.study.',))
  )


def groups(questions: Mapping[str, Question]) -> list[list[str]]:
  """The names of questions in groups about the same x_adv, in order."""
  found: list[list[str]] = []
  for name, one in questions.items():
    for group in found:
      if alike(questions[group[0]], one):
        group.append(name)
        break
    else:
      found.append([name])
  return found


def _x_adv(question: Question) -> Callable[..., Array | None]:
  """A jitted `(params, batch)` to x_adv [radii, batch, ...], compiled once."""
  attack, config = question.attack, question.job.config
  if attack is None:
    return lambda params, batch: None
  place = batch_sharding(question.attacked.mesh)

  def x_adv(params, batch):
    images = as_floats(batch['image'])
    eps = jnp.array(config.attack.eps, jnp.float32)
    return jax.lax.map(lambda e: attack(params, images, batch, e), eps)

  whole_radii = NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
  return jax.jit(x_adv, out_shardings=whole_radii)
