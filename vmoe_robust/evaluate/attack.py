"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust.attacks import label
from vmoe_robust.config import batch_size
from vmoe_robust.data import Source
from vmoe_robust.data.rows import Rows
from vmoe_robust.evaluate import target, token_experts
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.evaluate.job import PROGRESS, Job, assemble, open_job, write
from vmoe_robust.models import Model
from vmoe_robust.report.closing import closing
from vmoe_robust.report.progress import Stages
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness import sweep
from vmoe_robust.robustness.findings import Asked, findings, render
from vmoe_robust.robustness.images import require_space
from vmoe_robust.robustness.programs import Programs
from vmoe_robust.robustness.resume import Unfinished, release

X_ADV = 'x_adv'  # in the work directory


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Attacks `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with open_job(config, workdir, render) as job:
    if job is not None:
      attacker = Attacker(job.classifier.model, job.config)
      say(closing(attack(job, attacker, PROGRESS), workdir, render))


def asked(config: ConfigDict) -> Asked:
  """What results say of `config.attack`."""
  settings = config.attack
  parts = settings.name.split('+')
  name = tuple(parts) if len(parts) > 1 else parts[0]
  return Asked(
    label(name, settings.norm, target.budget(settings)),
    settings.norm,
    settings.eps,
    config.train.loss == 'sigmoid',
  )


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
    self._programs: Programs | None = None

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
  job: Job,
  attacker: Attacker,
  progress: str | None = None,
  on_turn: Callable[[], None] = lambda: None,
  speed: Mapping[str, float] | None = None,
) -> dict:
  """Attacks every example of a job; returns what is in `results.json`.

  Args:
    job: what is attacked, and how.
    attacker: of its model; `attacker.config` is the job's.
    progress: a folder in the work directory from which an attack that was cut
      short goes on; None: it does not.
    on_turn: called again and again, at the same places on every process; what
      it raises ends the attack.
    speed: how fast other things were, for the results.

  Raises:
    UserError: the disk has no room for x_adv.
  """
  config, source, subject = job.config, job.source, job.classifier
  archive = None
  if config.attack.save_images:
    archive = Path(job.workdir, X_ADV)
    pixels = len(source) * config.data.image_size**2 * source.channels
    # An image that falls late is there twice.
    needed = 2 * 4 * pixels * len(config.attack.eps)
    require_space(job.workdir, needed, 'config.attack.save_images=True')
  folder = Path(job.workdir, progress) if progress else None
  same = identity(config, subject.step, subject.checksum, source)
  unfinished = Unfinished(folder, same)
  swept = attacker(subject.params, source, unfinished, archive, on_turn)
  swept, experts = token_experts.of_shown(subject, config, swept)
  names = source.class_names
  found = findings(swept, asked(config), names, speed, experts)
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
