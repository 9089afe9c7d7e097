"""The story of a run, from configuration to results."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust import staging
from vmoe_robust.checkpoint import (
  Checkpoints,
  abstract,
  save_config,
)
from vmoe_robust.config import mesh_shape, validate
from vmoe_robust.distributed import fetch, pod
from vmoe_robust.errors import BadState, SavedAndStopped
from vmoe_robust.evaluate.finished import finished
from vmoe_robust.files import local_path, locked, require_writable
from vmoe_robust.models import build, flops
from vmoe_robust.report.closing import closing
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness.findings import render
from vmoe_robust.train import advance, events, routers
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib
from vmoe_robust.train.init_from import start_from
from vmoe_robust.train.load import Loads
from vmoe_robust.train.log import Log
from vmoe_robust.train.measuring import Measuring, attacked, is_told
from vmoe_robust.train.objective import forward_passes
from vmoe_robust.train.profile import Profile
from vmoe_robust.train.start import (
  Splits,
  check_same_run,
  expected,
  open_splits,
  require_weights,
)
from vmoe_robust.train.stopping import Stopped, Stopping


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Trains `config.model`, then attacks it; resumes what it finds started.

  Raises:
    UserError: the configuration, the data or the work directory do not fit,
      or the loss was not finite.
    SavedAndStopped: SIGTERM or Ctrl-C came before all was trained.
  """
  validate(config, jax.device_count())
  config, splits = open_splits(config)
  workdir = local_path(workdir, '--workdir')
  if _is_finished(config, workdir, splits):  # its disk may be read-only
    return
  require_weights(config, workdir)
  with locked(workdir):
    require_writable(workdir)
    # Another run may have ended just now.
    if not _is_finished(config, workdir, splits):
      _run(config, workdir, splits)


def _is_finished(
  config: ConfigDict, workdir: pathlib.Path, splits: Splits
) -> bool:
  """Whether there is nothing left to do; if so, shows the results."""
  check_same_run(config, workdir, splits.train.class_names)
  steps = config.train.steps
  examples = lambda: splits.test.fingerprint
  return finished(attacked(config), workdir, render, steps, examples=examples)


def _run(config, workdir, splits):
  mesh = mesh_lib.create(mesh_shape(config, jax.device_count()))
  with Stopping() as stopping:
    trainer = Trainer(config, workdir, mesh, splits)
    trainer.train(stopping)
    if trainer.step < config.train.steps or trainer.unmeasured:
      raise SavedAndStopped(
        f'stopped at step {trainer.step} and saved; the same command resumes'
      )
    if config.attack.at_end:
      stopping.at_once('stopped; all is trained, the same command attacks')
      trainer.release()
      results = trainer.measuring.final(trainer.state, trainer.speed)
      say('\n' + closing(results, workdir, render))
    else:
      say(f'finished; checkpoints are in {staging.name(workdir)}/checkpoints')


class Trainer:
  """Model, state, data and files of one run."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | os.PathLike,
    mesh: Mesh,
    splits: Splits,
  ):
    """Builds everything and goes back to the newest whole checkpoint."""
    self.config, self.workdir, self.mesh = config, workdir, mesh
    self.splits = splits
    size, train = config.data.image_size, config.train
    shape = (size, size, config.model.channels)
    # What saves a training's memory would only slow an attack down.
    self.model = build(config.model, shape, mesh)
    trained = build(config.model, shape, mesh, train.remat)
    optimizer = optimizer_lib.make(train.optimizer, train.steps)
    self.state, places = state_lib.create(
      self.model,
      optimizer,
      config.seed,
      train.ema > 0,
      mesh,
      config.mesh.fsdp,
      config.mesh.zero1,
    )
    self.checkpoints = Checkpoints(workdir, config.save)
    self.step, extra, start = 0, {}, fetch(routers.of(self.state.params))
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      saved, self.unmeasured = self.checkpoints.resume(), False
      if saved is not None:
        extra = self._restore(saved, places)
        self.unmeasured = self.checkpoints.is_unmeasured(saved)
      elif config.init_from:
        self._start_from()
      if config.init_from:
        start = routers.start(workdir, self.state.params, saved is None)
      stack.pop_all()  # from here on `train` closes them
    self._saved = self.step
    if jax.process_index() == 0:
      save_config(workdir, config, splits.train.class_names)
    rate = optimizer_lib.schedule(train.optimizer, train.steps)
    step = step_lib.make(trained, optimizer, rate, config, mesh, start)
    self._steps = advance.make(
      step, config, splits.train, mesh, places, extra.get('data')
    )
    self.loads = Loads(extra.get('loads'))
    best = extra.get('best_robust', 0.0)
    self.measuring = Measuring(self.model, config, mesh, splits, workdir, best)
    self.speed = {}
    self.about = {
      'parameters': sum(x.size for x in jax.tree.leaves(self.state.params)),
      'flops_per_image': flops.forward(config.model, size, shape[-1]),
    }

  def train(self, stopping: Stopping) -> None:
    """Trains to the last step, or until it is asked to stop; then saves."""
    total = self.config.train.steps
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      stack.callback(self._steps.batches.close)
      stack.enter_context(pod.closing_in_time())
      if self.step >= total and not self.unmeasured:
        return
      log = self._open_log(stack)
      if self.unmeasured:
        self._measure_late(log, stopping)
      if self.step >= total or self.unmeasured:
        return
      wanted = forward_passes(self.config.train.objective)
      wanted *= self.about['flops_per_image'] * self.config.train.batch_size
      seconds = advance.compile_steps(self._steps, self.state, wanted)
      self.speed['compile_seconds'] = seconds
      folder = pathlib.Path(self.workdir) / 'profile'
      profile = Profile(folder, self.config.train.profile_steps)
      stack.callback(profile.close)
      while True:
        profile.before(self.step + 1)
        ahead = events.steps_ahead(self.config, self.step)
        with self._kept(log):
          self.state, metrics, steps = self._steps(self.state, ahead)
        self.step += steps
        profile.after(self.step, metrics)
        log.add(self.step, metrics, steps)
        last, stop = self.step == total, stopping()
        measured = {}
        # Before saving, so that a run killed here does it when resumed.
        if any(self._due()):
          self.unmeasured = True
          with self._kept(log):
            stop = stop or not self._measure(log, stopping, measured)
          self.unmeasured = stop
        if self.checkpoints.due(self.step, measured) or last or stop:
          log.drain()  # what is not finite is not saved
          log.pause()
          self._save(measured, last or stop)
        if last or stop:
          break
      self.speed['trained_images_per_second'] = log.rate()

  @contextlib.contextmanager
  def _kept(self, log: Log) -> Iterator[None]:
    """Saves the steps so far where reading an image fails, or measuring.

    Not on several processes: the others do not know of it, and saving takes
    all of them.
    """
    try:
      yield
    except BadState:
      raise
    except Exception:
      if jax.process_count() == 1 and self.step > self._saved:
        with contextlib.suppress(Exception):  # the first one is told
          log.drain()  # what is not finite is not saved
          self._save({}, now=True)
          say(f'step {self.step} is saved')
      raise

  def _due(self) -> tuple[bool, bool]:
    """Whether to evaluate, and to attack, at this step."""
    config, last = self.config, self.step == self.config.train.steps
    evaluates = last or events.due(self.step, config.eval.every_steps)
    attacks = events.due(self.step, config.attack.every_steps)
    if last:  # only to select: the attack on the test comes after it
      selects = config.save.best.startswith('robust_accuracy')
      attacks = bool(config.attack.every_steps) and selects
    return evaluates, attacks

  def _measure(
    self, log: Log, stopping: Stopping, measured: dict[str, float]
  ) -> bool:
    """Evaluates and attacks, as is due; False if it was asked to stop.

    What is found on the test, if there is something else to select on, is no
    part of `measured`.
    """
    state, (evaluates, attacks) = self.state, self._due()
    last = self.step == self.config.train.steps
    log.drain()
    try:
      if evaluates:
        measured |= self.measuring.accuracy(state, stopping.between)
        log.write(self.step, measured)
      if last and (found := self.measuring.test(state, stopping.between)):
        log.write(self.step, found)
      if attacks:
        robust = self.measuring.robustness(state, stopping.check)
        log.write(self.step, robust)
        measured |= robust
    except Stopped:
      return False
    log.pause()
    return True

  def _measure_late(self, log: Log, stopping: Stopping):
    """Does what was due where the run was stopped."""
    measured = {}
    if any(self._due()) and not self._measure(log, stopping, measured):
      return
    extra = {'best_robust': self.measuring.best_robust}
    self.checkpoints.add_metrics(self.step, measured, extra)
    self.unmeasured = False

  def _open_log(self, stack: contextlib.ExitStack) -> Log:
    say(
      f'{staging.name(self.workdir)}: {self.about["parameters"]:,} parameters, '
      f'{self.about["flops_per_image"] / 1e6:,.2f} MFLOP an image, '
      f'{len(self.splits.train):,} images, mesh {dict(self.mesh.shape)}'
    )
    for line in expected(self.config, self.mesh, len(self.splits.train)):
      say(line)
    if is_told(self.config):
      say(
        'the oracle router is told the class of each image: accuracies of this '
        'run are no classification'
      )
    if jax.process_index():
      return Log(self.config, self._last_good, None, None, self.loads)
    writer = MetricWriter(self.workdir, after_step=self.step)
    stack.callback(writer.close)
    progress = Progress(self.config.train.steps, 'train', done=self.step)
    stack.callback(progress.close)
    return Log(self.config, self._last_good, writer, progress, self.loads)

  def _last_good(self) -> str | None:
    steps = self.checkpoints.steps()
    return str(self.checkpoints.path(steps[-1])) if steps else None

  def _restore(self, saved: int, places) -> dict:
    wanted = abstract(self.state.trees(), places.trees())
    trees, extra = self.checkpoints.restore(saved, wanted)
    self.state = state_lib.TrainState.of(trees)
    self.step = saved
    say(f'resumed from step {saved} of {staging.name(self.workdir)}')
    return extra

  def release(self) -> None:
    """Frees what training alone needs; what is evaluated stays."""
    params = self.state.evaluated()
    self.state = self.state.replace(params=params, ema=(), opt_state=())
    del self._steps

  def _start_from(self):
    classes = self.splits.train.class_names
    params = start_from(self.config, self.state.params, self.workdir, classes)
    ema = jax.tree.map(jnp.copy, params) if self.config.train.ema else ()
    self.state = self.state.replace(params=params, ema=ema)

  def _save(self, measured: dict[str, float], now: bool):
    extra = {
      'data': self._steps.batches.state(),
      'best_robust': self.measuring.best_robust,
      'loads': self.loads.state(),
    }
    trees = self.state.trees()
    self.checkpoints.save(
      self.step, trees, extra, measured, now, self.unmeasured
    )
    self._saved = self.step
