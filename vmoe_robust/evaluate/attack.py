"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from vmoe_robust.config import WHOLE_ATTACKS, UserError, batch_size
from vmoe_robust.data import Source, eval_batches
from vmoe_robust.evaluate import outcome, robustness
from vmoe_robust.evaluate.ensembled import Ensembled
from vmoe_robust.evaluate.kept import Kept, identity
from vmoe_robust.evaluate.load import Classifier
from vmoe_robust.evaluate.opened import PROGRESS, opened
from vmoe_robust.evaluate.snapshot import release
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.terminal import say

# Numbers that saved x_adv may have, 8 GB of them; they are held in memory.
_MOST_PIXELS = 2e9


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Attacks `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with opened(config, workdir, outcome.closing) as here:
    if here is not None:
      program = make(here.classifier.model, here.config)
      results = attack(
        here.classifier, here.source, program, workdir, {}, PROGRESS
      )
      say(outcome.closing(results, workdir))


def make(model: Model, config: ConfigDict) -> robustness.Program | Ensembled:
  """What carries out the attack of `config.attack`."""
  whole = config.attack.name in WHOLE_ATTACKS
  return (robustness.Program if whole else Ensembled)(model, config)


def attack(
  classifier: Classifier,
  source: Source,
  program: robustness.Program | Ensembled,
  workdir: str | os.PathLike,
  about: dict,
  progress: str | None = None,
  on_turn: Callable[[], None] = lambda: None,
) -> dict:
  """Attacks every example of a source; returns what is in `results.json`.

  Args:
    classifier: what to attack.
    source: the examples.
    program: of the model; `program.config` says how.
    workdir: where the results go.
    about: what else the results should say.
    progress: a folder in it from which an attack that was cut short goes on;
      None: it does not.
    on_turn: called again and again, at the same places on every process; what
      it raises ends the attack.
  """
  config, radii = program.config, len(program.config.attack.eps)
  pixels = radii * len(source) * config.data.image_size**2 * source.channels
  if config.attack.save_images and pixels > _MOST_PIXELS:
    raise UserError(
      f'config.attack.save_images=True would keep {pixels:,} numbers in '
      f'memory, more than {_MOST_PIXELS:,.0f}; attack a part, such as '
      "config.data.split='test[:1000]', or fewer radii"
    )
  folder = Path(workdir, progress) if progress else None
  whole = isinstance(program, robustness.Program)
  if folder is None and jax.process_count() > 1 and not whole:
    # Processes exchange images by files. Old ones are of no use.
    folder = Path(workdir, 'attack')
    release(folder)
  same = identity(config, classifier.step, classifier.checksum)
  if whole:
    attacked = _in_batches(
      classifier, source, program, Kept(folder, same), on_turn
    )
  else:
    attacked = program(classifier.params, source, folder, same, on_turn)
  about = about | {
    'checkpoint': classifier.where,
    'checkpoint_checksum': classifier.checksum,
    'step': classifier.step,
    'split': f'{config.data.name} {config.data.split}',
    'experts': config.attack.experts,
    'attacked_images_per_second': attacked.images_per_second,
    'corrupt_images': [source.describe(i) for i in attacked.corrupt],
  }
  try:
    results = outcome.write(
      workdir, attacked, config, about, source.class_names
    )
  except OSError as error:
    if progress:
      raise
    # While training its metrics have the numbers, and a full disk does not
    # end it.
    logging.warning('the results of an attack were not written: %s', error)
    results = outcome.summarise(attacked, config)
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
