"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from vmoe_robust.config import WHOLE_ATTACKS, UserError, batch_size
from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import robustness
from vmoe_robust.evaluate.attack_results import findings, render
from vmoe_robust.evaluate.ensembled import Ensembled
from vmoe_robust.evaluate.job import PROGRESS, Job, assemble, open_job, write
from vmoe_robust.evaluate.kept import Kept, identity
from vmoe_robust.evaluate.snapshot import release
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report.closing import closing
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.terminal import say

# Numbers that saved x_adv may have, 8 GB of them; they are held in memory.
_MOST_PIXELS = 2e9


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Attacks `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with open_job(config, workdir, render) as job:
    if job is not None:
      program = make(job.classifier.model, job.config)
      say(closing(attack(job, program, PROGRESS), workdir, render))


def make(model: Model, config: ConfigDict) -> robustness.Program | Ensembled:
  """What carries out the attack of `config.attack`."""
  whole = config.attack.name in WHOLE_ATTACKS
  return (robustness.Program if whole else Ensembled)(model, config)


def attack(
  job: Job,
  program: robustness.Program | Ensembled,
  progress: str | None = None,
  on_turn: Callable[[], None] = lambda: None,
  speed: Mapping[str, float] | None = None,
) -> dict:
  """Attacks every example of a job; returns what is in `results.json`.

  Args:
    job: what is attacked, and how.
    program: of its model; `program.config` is the job's.
    progress: a folder in the work directory from which an attack that was cut
      short goes on; None: it does not.
    on_turn: called again and again, at the same places on every process; what
      it raises ends the attack.
    speed: how fast other things were, for the results.
  """
  config, source, subject = job.config, job.source, job.classifier
  pixels = len(config.attack.eps) * len(source)
  pixels *= config.data.image_size**2 * source.channels
  if config.attack.save_images and pixels > _MOST_PIXELS:
    raise UserError(
      f'config.attack.save_images=True would keep {pixels:,} numbers in '
      f'memory, more than {_MOST_PIXELS:,.0f}; attack a part, such as '
      "config.data.split='test[:1000]', or fewer radii"
    )
  folder = Path(job.workdir, progress) if progress else None
  whole = isinstance(program, robustness.Program)
  if folder is None and jax.process_count() > 1 and not whole:
    # Processes exchange images by files. Old ones are of no use.
    folder = Path(job.workdir, 'attack')
    release(folder)
  same = identity(config, subject.step, subject.checksum)
  if whole:
    kept = Kept(folder, same)
    attacked = _in_batches(subject, source, program, kept, on_turn)
  else:
    attacked = program(subject.params, source, folder, same, on_turn)
  found = findings(attacked, config, source.class_names, speed)
  try:
    results = write(job, found)
  except OSError as error:
    if progress:
      raise
    # While training its metrics have the numbers, and a full disk does not
    # end it.
    logging.warning('the results of an attack were not written: %s', error)
    results = assemble(job, found)
  if folder:
    release(folder)
  return results


def _in_batches(
  classifier, source, program, kept, on_turn
) -> robustness.Attacked:
  config, radii = program.config, len(program.config.attack.eps)
  batches = eval_batches(
    config.data,
    source,
    batch_size=batch_size(config, 'attack'),
    sharding=batch_sharding(classifier.mesh),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    show = lambda done, images: None
    if jax.process_index() == 0:
      progress = Progress(len(batches) * radii, 'attack', 'batch')
      stack.callback(progress.close)
      show = progress.update

    def on_batch(done, images):
      show(done, images)
      on_turn()

    return robustness.run(program, classifier.params, batches, on_batch, kept)
