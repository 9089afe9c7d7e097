"""An ensemble on one of our models, as `config.attack` says."""

import dataclasses
import os
from collections.abc import Callable

from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust import attacks
from vmoe_robust.config import UserError, batch_size
from vmoe_robust.data import Source
from vmoe_robust.data.rows import Rows
from vmoe_robust.evaluate import robustness, sweep
from vmoe_robust.evaluate.ensemble import Runner
from vmoe_robust.evaluate.victim import of_model
from vmoe_robust.models import Model, build
from vmoe_robust.report.progress import Stages


class Ensembled:
  """Attacks what still stands; compiled for the first examples."""

  def __init__(self, model: Model, config: ConfigDict):
    """Compiles nothing yet.

    Raises:
      UserError: the model has several labels an image.
    """
    self.config, self._model = config, model
    settings, loss = config.attack, config.train.loss
    if loss != 'softmax':
      raise UserError(
        f'config.attack.name={settings.name!r} needs one label an image, but '
        f"config.train.loss={loss!r}; use config.attack.name='pgd'"
      )
    parts = tuple(settings.name.split('+'))
    self._ensemble = attacks.ensemble(
      parts[0] if len(parts) == 1 else parts,
      settings.norm,
      config.model.num_classes,
      attacks.Budget(
        settings.steps,
        settings.queries,
        restarts=settings.restarts if settings.restarts > 1 else 0,
      ),
    )
    self._runner = None

  def __call__(
    self,
    params: PyTree,
    source: Source,
    folder: str | os.PathLike | None,
    identity: dict[str, object],
    on_turn: Callable[[], None] = lambda: None,
  ) -> robustness.Attacked:
    """Attacks every example of a source at every radius.

    Args:
      params: weights.
      source: the examples.
      folder: where an attack that is cut short leaves what it has.
      identity: by which it is known to be the same one.
      on_turn: called after each turn of the slots, on every process.
    """
    config = self.config
    if self._runner is None:
      self._runner = self._make(params)
    self._runner.victim = dataclasses.replace(
      self._runner.victim, params=params
    )
    rows = Rows(source, config.data)
    stages = Stages(len(source))

    def on_progress(*told):
      stages.update(*told)
      on_turn()

    try:
      found = sweep.run(
        self._runner,
        rows,
        config.attack.eps,
        shape=self._model.image_shape,
        identity=identity,
        folder=folder,
        keep_images=config.attack.save_images,
        on_progress=on_progress,
      )
    finally:
      stages.close()
      rows.close()
    return robustness.Attacked(
      columns=found.columns,
      loads=found.loads,
      corrupt=found.corrupt,
      images_per_second=found.images_per_second,
      falls=found.falls,
      warnings=found.warnings,
      shown=found.shown,
    )

  def _make(self, params) -> Runner:
    config, model = self.config, self._model
    through = None
    if config.attack.compute_dtype:
      settings = config.model.copy_and_resolve_references()
      settings.compute_dtype = config.attack.compute_dtype
      through = build(settings, model.image_shape, model.module.mesh)
    return Runner(
      of_model(model, params, config.attack.experts, through),
      self._ensemble,
      robustness.score_program(model, config),
      config.seed,
      batch_size(config, 'attack'),
    )
