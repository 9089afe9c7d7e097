"""What the modes share that judge a saved checkpoint without an attack."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import EvalBatches
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.evaluate.opened import PROGRESS, Opened, opened
from vmoe_robust.files import write_json
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.records import read_records, write_records
from vmoe_robust.report.results import RECORDS, RESULTS, environment
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness.resume import Unfinished

Batch = dict[str, Array]
Columns = dict[str, np.ndarray]


def run(
  config: ConfigDict,
  workdir: str | os.PathLike,
  find: Callable[[Opened], tuple[Columns, set[int]]],
  summarise: Callable[[Columns, ConfigDict], dict],
  closing: Callable[[dict, str | os.PathLike], str],
):
  """Judges `config.checkpoint`, writes the results and prints the table.

  Args:
    config: of a mode.
    workdir: where the results go.
    find: a row an example, or several, and the examples skipped.
    summarise: the records to the results that are the mode's own.
    closing: `(results, workdir)` to the text that ends a run.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with opened(config, workdir, closing) as here:
    if here is not None:
      columns, corrupt = find(here)
      results = write(here, columns, corrupt, summarise)
      say(closing(results, workdir))


def rows_of(
  here: Opened,
  batches: Callable[[int], EvalBatches],
  find: Callable[[int, Batch], Columns],
) -> tuple[Columns, set[int]]:
  """A row an example, or several, and the examples skipped.

  A run that was cut short goes on after the last batch that was finished.

  Args:
    here: what is judged.
    batches: of a number, the batches from that one on.
    find: `(number, batch)` to columns, with the batch's 'mask' and 'index'.
  """
  subject = here.classifier
  same = identity(here.config, subject.step, subject.checksum)
  kept = Unfinished(Path(here.workdir, PROGRESS), same)
  rows, done = [], 0
  while row := kept.get(str(done)):
    rows.append(row)
    done += 1
  with contextlib.closing(batches(done)) as rest:
    for number, batch in enumerate(rest, done):
      rows.append(find(number, batch))
      kept.put(str(number), rows[-1])
  kept.wait()
  columns = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
  mask, index = columns.pop('mask'), columns['index']
  corrupt = set(index[~mask & (index >= 0)].tolist())
  return {name: column[mask] for name, column in columns.items()}, corrupt


def write(
  here: Opened,
  columns: Columns,
  corrupt: set[int],
  summarise: Callable[[Columns, ConfigDict], dict],
) -> dict:
  """Writes the records, and the results computed from what was written.

  The first process writes; all return the same.

  Args:
    here: what was judged.
    columns: a row an example, or several.
    corrupt: the examples that were skipped.
    summarise: see `run`.

  Raises:
    UserError: no example could be read.
  """
  config = here.config
  if not len(columns['index']):
    raise UserError(
      f'all {len(corrupt)} images of config.data.split='
      f'{config.data.split!r} are corrupt; check config.data.dir'
    )
  path, first = Path(here.workdir) / RECORDS, jax.process_index() == 0
  if first:
    write_records(path, columns)
    columns = read_records(path)
  results = summarise(columns, config) | {
    'checkpoint': str(here.classifier.where),
    'checkpoint_checksum': here.classifier.checksum,
    'step': here.classifier.step,
    'split': f'{config.data.name} {config.data.split}',
    'experts': 'dropless',
    'corrupt_images': [here.source.describe(i) for i in sorted(corrupt)],
    'records': str(path),
    'config': config.to_dict(),
    **environment(),
  }
  if first:
    write_json(Path(here.workdir) / RESULTS, results)
  Unfinished(Path(here.workdir, PROGRESS), None).release()
  return results


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


def footer(results: dict, workdir: str | os.PathLike) -> str:
  """The lines below a mode's table."""
  step = '' if results['step'] is None else f'step {results["step"]} of '
  lines = [
    f'{results["examples"]} examples of {results["split"]}, {step}'
    f'{results["checkpoint"]}'
  ]
  if count := len(results['corrupt_images']):
    lines.append(f'{count} corrupt image{"s" * (count > 1)} skipped')
  lines.append(f'written to {workdir}: {RESULTS}, {RECORDS}')
  return '\n'.join(lines)
