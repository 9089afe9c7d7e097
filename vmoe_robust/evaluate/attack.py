"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from absl import logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust.config import batch_size
from vmoe_robust.data import Source
from vmoe_robust.data.rows import Rows
from vmoe_robust.evaluate import outcome, target
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.evaluate.load import Classifier
from vmoe_robust.evaluate.opened import PROGRESS, opened
from vmoe_robust.models import Model
from vmoe_robust.report.progress import Stages
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness import sweep
from vmoe_robust.robustness.images import require_space
from vmoe_robust.robustness.programs import Programs
from vmoe_robust.robustness.resume import Unfinished

X_ADV = 'x_adv'  # in the work directory


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Attacks `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with opened(config, workdir, outcome.closing) as here:
    if here is not None:
      program = Attacker(here.classifier.model, here.config)
      results = attack(
        here.classifier, here.source, program, workdir, {}, PROGRESS
      )
      say(outcome.closing(results, workdir))


class Attacker:
  """Carries out the attack of `config.attack`; compiled for the first examples.

  Weights may differ between calls.
  """

  def __init__(self, model: Model, config: ConfigDict):
    """Compiles nothing yet.

    Raises:
      UserError: the attack does not fit the model.
    """
    self.config, self._model = config, model
    self._ensemble = target.ensemble(config)
    self._programs = None

  def __call__(
    self,
    params: PyTree,
    source: Source,
    unfinished: Unfinished,
    archive: Path | None = None,
    on_turn: Callable[[], None] = lambda: None,
  ) -> sweep.Swept:
    """Attacks every example of a source at every radius.

    Args:
      params: weights.
      source: the examples.
      unfinished: where an attack that is cut short leaves what it has.
      archive: a folder for x_adv; None: it is not kept.
      on_turn: called after each turn of the slots, on every process.
    """
    config = self.config
    if self._programs is None:
      self._programs = self.programs(params)
    programs = self._programs
    programs.target = dataclasses.replace(programs.target, params=params)
    with contextlib.ExitStack() as stack:
      rows = Rows(source, config.data)
      stack.callback(rows.close)
      stages = Stages(len(source))
      stack.callback(stages.close)

      def told(*what):
        stages.update(*what)
        on_turn()

      return sweep.run(
        programs,
        rows,
        config.attack.eps,
        unfinished=unfinished,
        archive=archive,
        on_turn=told,
      )

  def programs(self, params: PyTree) -> Programs:
    """The programs; `params` may be shapes alone."""
    config = self.config
    return Programs(
      target.of_config(self._model, params, config),
      self._ensemble,
      norm=config.attack.norm,
      seed=config.seed,
      batch_size=batch_size(config, 'attack'),
    )


def attack(
  classifier: Classifier,
  source: Source,
  attacker: Attacker,
  workdir: str | os.PathLike,
  about: dict,
  progress: str | None = None,
  on_turn: Callable[[], None] = lambda: None,
) -> dict:
  """Attacks every example of a source; returns what is in `results.json`.

  Args:
    classifier: what to attack.
    source: the examples.
    attacker: of the model; `attacker.config` says how.
    workdir: where the results go.
    about: what else the results should say.
    progress: a folder in it from which an attack that was cut short goes on;
      None: it does not.
    on_turn: called again and again, at the same places on every process; what
      it raises ends the attack.

  Raises:
    UserError: the disk has no room for x_adv.
  """
  config, archive = attacker.config, None
  if config.attack.save_images:
    archive = Path(workdir, X_ADV)
    pixels = len(source) * config.data.image_size**2 * source.channels
    # An image that falls late is there twice.
    needed = 2 * 4 * pixels * len(config.attack.eps)
    require_space(workdir, needed, 'config.attack.save_images=True')
  folder = Path(workdir, progress) if progress else None
  same = identity(config, classifier.step, classifier.checksum)
  unfinished = Unfinished(folder, same)
  attacked = attacker(classifier.params, source, unfinished, archive, on_turn)
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
  unfinished.release()
  return results
