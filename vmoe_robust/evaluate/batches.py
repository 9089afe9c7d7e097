"""A split in batches, which goes on after the last batch that was finished."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from vmoe_robust.data import EvalBatches
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.evaluate.job import PROGRESS, Job, require_examples
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
  subject = job.classifier
  same = identity(job.config, subject.step, subject.checksum)
  unfinished = Unfinished(Path(job.workdir, PROGRESS), same)
  rows, done = [], 0
  while row := unfinished.get(str(done)):
    rows.append(row)
    done += 1
  with contextlib.closing(batches(done)) as rest:
    for number, batch in enumerate(rest, done):
      rows.append(find(number, batch))
      unfinished.put(str(number), rows[-1])
  unfinished.wait()
  columns = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
  mask, index = columns.pop('mask'), columns['index']
  skipped = set(index[~mask & (index >= 0)].tolist())
  require_examples(job.config, int(mask.sum()), len(skipped))
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
