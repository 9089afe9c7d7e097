"""A split in batches, which goes on after the last batch that was finished."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from vmoe_robust.data import EvalBatches, require_images
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.evaluate.job import PROGRESS, Job
from vmoe_robust.report.findings import Columns
from vmoe_robust.report.progress import Progress
from vmoe_robust.robustness.resume import Unfinished

Batch = dict[str, Array]


def rows_of(
  job: Job,
  batches: Callable[[int], EvalBatches],
  find: Callable[[int, Batch], Columns],
) -> tuple[Columns, set[int]]:
  """A row an example, or several, and the examples skipped.

  A run that was cut short goes on after the last batch that was finished.

  Args:
    job: what is judged.
    batches: of a number, the batches from that one on.
    find: `(number, batch)` to columns, with the batch's 'mask' and 'index'.

  Raises:
    UserError: no example could be read.
  """
  rows = Rows(job)
  with contextlib.closing(batches(len(rows))) as rest:
    for number, batch in enumerate(rest, len(rows)):
      rows.put(find(number, batch))
  return rows.columns()


class Rows:
  """What was found in the batches of a job so far, batch by batch."""

  def __init__(self, job: Job):
    """Reads what a run that was cut short has found.

    Raises:
      UserError: the work directory has the beginning of another run.
    """
    self._job, subject = job, job.classifier
    same = identity(job.config, subject.step, subject.checksum, job.source)
    self._unfinished = Unfinished(Path(job.workdir, PROGRESS), same)
    self._rows: list[Columns] = []
    while row := self._unfinished.get(str(len(self))):
      self._rows.append(row)

  def __len__(self) -> int:
    return len(self._rows)

  def put(self, row: Columns) -> None:
    """Keeps the columns of the next batch, with its 'mask' and 'index'."""
    self._unfinished.put(str(len(self)), row)
    self._rows.append(row)

  def columns(self) -> tuple[Columns, set[int]]:
    """A row an example, or several, and the examples skipped.

    Raises:
      UserError: no example could be read.
    """
    self._unfinished.wait()
    names, rows = self._rows[0], self._rows
    columns = {name: np.concatenate([r[name] for r in rows]) for name in names}
    mask, index = columns.pop('mask'), columns['index']
    skipped = set(index[~mask & (index >= 0)].tolist())
    require_images(self._job.config.data.split, int(mask.sum()), len(skipped))
    return {name: column[mask] for name, column in columns.items()}, skipped


@contextlib.contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable]:
  """`Progress.update` on the first process, and nothing on the others."""
  if jax.process_index():
    yield lambda done, images=0, text='': None
    return
  line = Progress(total, what, unit)
  try:
    yield line.update
  finally:
    line.close()
