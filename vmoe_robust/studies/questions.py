"""Questions about the same x_adv, which are made once for all of them.

Many studies show a model the x_adv of one attack: that of `config.attack` on
the plain dropless model. Each of them says here what it asks of a batch and of
its x_adv, as a `Question`. Studies of one start are asked batch by batch: a
batch is attacked once, by a program of its own, every study looks at its x_adv,
and then the next batch comes. So no x_adv are kept but those of one batch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from vmoe_robust.config import UserError, batch_size, differences
from vmoe_robust.distributed import fetch
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
  """What is found by a question alone.

  Raises:
    UserError: as in `answers`.
  """
  (found,) = answers([question])
  if isinstance(found, UserError):
    raise found
  return found


def answers(questions: Sequence[Question]) -> list[Findings | UserError]:
  """What is found by questions about the same x_adv; see `alike`.

  Each goes on after the last batch that it has finished, and a batch that all
  of them have finished is not attacked again. One that does not fit does not
  stop the others: in the place of its findings is why.

  Raises:
    UserError: no example could be read.
  """
  first = questions[0]
  attacked, params = _x_adv(first), first.attacked.params
  asked = [_Asked(one) for one in questions]
  start = min((len(one) for one in asked if one.error is None), default=0)
  several = len(questions) > 1
  what = f'{len(questions)} studies' if several else first.what
  with (
    progress(under.total(first.job), what, 'batch') as update,
    contextlib.closing(under.batches(first.job, start)) as batches,
  ):
    for number, batch in enumerate(batches, start):
      if all(one.error for one in asked):
        break
      x_adv = attacked(params, batch)
      for one in asked:
        one.look(number, batch, x_adv)
      update(number + 1, int(np.asarray(fetch(batch['mask'])).sum()))
  return [one.found() for one in asked]


class _Asked:
  """A question, what was found so far, and why it cannot be answered."""

  def __init__(self, question: Question):
    self._question = question
    self.error: UserError | None = None
    self._find = under.finder(question.job, question.program)
    with self._noted():
      self._rows = Rows(question.job)

  def __len__(self) -> int:
    return len(self._rows)

  def look(self, number: int, batch, x_adv) -> None:
    """Finds what a batch says, unless that is known."""
    if self.error is None and len(self._rows) == number:
      with self._noted():
        self._rows.put(self._find(batch, (x_adv, *self._question.given)))

  def found(self) -> Findings | UserError:
    """What all batches say."""
    with self._noted():
      if self.error is None:
        columns, skipped = self._rows.columns()
        whole = under.stacked(columns, self._question.conditions)
        return self._question.findings(whole, skipped)
    assert self.error is not None
    return self.error

  @contextlib.contextmanager
  def _noted(self) -> Iterator[None]:
    try:
      yield
    except UserError as error:
      self.error = error


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
