"""What a run measures of its model: accuracy, and accuracy under attack."""

import contextlib
import functools
import os
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust import staging
from vmoe_robust.checkpoint import fingerprint
from vmoe_robust.config import batch_size, eps_name
from vmoe_robust.data import Source, eval_batches
from vmoe_robust.evaluate import accuracy
from vmoe_robust.evaluate.attack import Attacker, attack
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.evaluate.finished import VALIDATION
from vmoe_robust.evaluate.job import PROGRESS, Job
from vmoe_robust.models import Model
from vmoe_robust.train.monitor import Monitor
from vmoe_robust.train.start import Splits
from vmoe_robust.train.state import TrainState

Numbers = dict[str, float]


class Measuring:
  """Measures on the validation part while training, and on the test at the end.

  Without a validation part it is the test all along. Programs are compiled
  once.
  """

  def __init__(
    self,
    model: Model,
    config: ConfigDict,
    mesh: Mesh,
    splits: Splits,
    workdir: str | os.PathLike,
    best_robust: float = 0.0,
  ):
    """Compiles and reads nothing yet.

    Args:
      model: without what saves a training's memory.
      config: of the run.
      mesh: the device mesh.
      splits: the examples.
      workdir: where results of attacks go.
      best_robust: of the monitor, of a run that is resumed.
    """
    self._model, self._config, self._mesh = model, config, mesh
    self._splits, self._workdir = splits, workdir
    self.best_robust = best_robust

  def accuracy(self, state: TrainState, between: Callable = iter) -> Numbers:
    """Accuracy and loss on what is watched, and the monitor's.

    Args:
      state: of which the weights.
      between: what goes over the batches, and may raise.
    """
    found = self._accuracy('eval', self._splits.watched, state, between)
    if self._config.train.monitor.eps:
      found |= self._monitor(state.evaluated(), int(state.step))
      self.best_robust = self._monitor.best
    return found

  def test(self, state: TrainState, between: Callable = iter) -> Numbers:
    """Accuracy and loss on the test, if something else is watched."""
    if self._splits.validation is None:
      return {}
    return self._accuracy('test', self._splits.test, state, between)

  def robustness(
    self, state: TrainState, on_turn: Callable[[], None]
  ) -> Numbers:
    """Attacks what is watched, and writes the results.

    Args:
      state: of which the weights.
      on_turn: called again and again; what it raises ends the attack.
    """
    config = self._attacker.config
    if self._splits.validation is not None:
      config = config.copy_and_resolve_references()
      config.data.split = self._config.data.split + VALIDATION
    found = self._attack(state, self._splits.watched, config, None, on_turn)
    return {
      f'robust_accuracy/{eps_name(row["eps"])}': row['robust_accuracy']['value']
      for row in found['rows']
    }

  def final(self, state: TrainState, speed: Numbers) -> dict:
    """Attacks the test and writes the results, which it returns.

    Args:
      state: of which the weights.
      speed: of the training, for the results.
    """
    config, test = self._attacker.config, self._splits.test
    return self._attack(state, test, config, PROGRESS, lambda: None, speed)

  def _accuracy(self, name, source: Source, state: TrainState, between):
    batches = eval_batches(
      self._config.data,
      source,
      batch_size=batch_size(self._config, 'eval'),
      sharding=mesh_lib.batch_sharding(self._mesh),
    )
    with contextlib.closing(batches):
      params = state.evaluated()
      found = accuracy.evaluate(self._forward, params, between(batches))
    told = '_given_class' if is_told(self._config) else ''
    return {f'{name}_{of}{told}': value for of, value in found.items()}

  def _attack(self, state, source, config, progress, on_turn, speed=None):
    step = int(state.step)
    classifier = Classifier(
      self._model,
      state.evaluated(),
      self._config,
      self._mesh,
      staging.name(self._workdir),
      step,
      fingerprint(self._workdir, step),
    )
    warnings = self._splits.warnings if source is self._splits.test else ()
    job = Job(classifier, source, config, self._workdir, warnings)
    return attack(job, self._attacker, progress, on_turn, speed)

  @functools.cached_property
  def _forward(self):
    return accuracy.make(self._model, self._config)

  @functools.cached_property
  def _monitor(self):
    watched = self._splits.watched
    return Monitor(self._model, self._config, watched, self.best_robust)

  @functools.cached_property
  def _attacker(self):
    return Attacker(self._model, attacked(self._config))


def attacked(config: ConfigDict) -> ConfigDict:
  """The configuration of the attack that ends a run."""
  config = config.copy_and_resolve_references()
  config.data.split = config.data.eval_split
  return config


def is_told(config: ConfigDict) -> bool:
  """Whether the router is told the class, so that nothing is classified."""
  model = config.model
  return bool(model.experts) and model.router.name == 'oracle'
