"""The story of a run, from configuration to results."""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import (
  Checkpoints,
  abstract,
  fingerprint,
  save_config,
)
from vmoe_robust.config import batch_size, eps_name, mesh_shape, validate
from vmoe_robust.cost import program
from vmoe_robust.data import Source, eval_batches, open_source
from vmoe_robust.distributed import pod
from vmoe_robust.evaluate import accuracy
from vmoe_robust.evaluate.attack import Attacker, attack
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.evaluate.job import PROGRESS, Job, finished
from vmoe_robust.files import local_path, locked, require_writable
from vmoe_robust.models import build, flops
from vmoe_robust.report.closing import closing
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness.findings import render
from vmoe_robust.train import advance, events
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib
from vmoe_robust.train.init_from import start_from
from vmoe_robust.train.log import Log
from vmoe_robust.train.profile import Profile
from vmoe_robust.train.start import check_same_run, resolve
from vmoe_robust.train.stopping import Stopped, Stopping


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Trains `config.model`, then attacks it; resumes what it finds started.

  Raises:
    UserError: the configuration, the data or the work directory do not fit,
      or the loss was not finite.
  """
  validate(config, jax.device_count())
  source = open_source(config.data, config.data.split)
  held_out = open_source(config.data, config.data.eval_split)
  config, held_out = resolve(config, source, held_out)
  workdir = local_path(workdir, '--workdir')
  if _is_finished(config, workdir, source):  # its disk may be read-only
    return
  require_writable(workdir)
  with locked(workdir):
    # Another run may have ended just now.
    if not _is_finished(config, workdir, source):
      _run(config, workdir, source, held_out)


def _is_finished(
  config: ConfigDict, workdir: pathlib.Path, source: Source
) -> bool:
  """Whether there is nothing left to do; if so, shows the results."""
  check_same_run(config, workdir, source.class_names)
  steps = config.train.steps
  return finished(_attacked(config), workdir, render, steps)


def _run(config, workdir, source, held_out):
  mesh = mesh_lib.create(mesh_shape(config, jax.device_count()))
  with Stopping() as stopping:
    trainer = Trainer(config, workdir, mesh, source, held_out)
    trainer.train(stopping)
    if trainer.step < config.train.steps:
      say(f'stopped at step {trainer.step} and saved; the same command resumes')
    elif config.attack.at_end:
      stopping.at_once('stopped; all is trained, the same command attacks')
      results = trainer.attack(PROGRESS)
      say('\n' + closing(results, workdir, render))
    else:
      say(f'finished; checkpoints are in {workdir}/checkpoints')


class Trainer:
  """Model, state, data and files of one run."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | os.PathLike,
    mesh: Mesh,
    source: Source,
    held_out: Source,
  ):
    """Builds everything and goes back to the newest whole checkpoint."""
    self.config, self.workdir, self.mesh = config, workdir, mesh
    self.source, self.held_out = source, held_out
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
    self.step, data_state = 0, None
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      saved = self.checkpoints.resume()
      if saved is not None:
        data_state = self._restore(saved, places)
      elif config.init_from:
        self._start_from()
      stack.pop_all()  # from here on `train` closes them
    if jax.process_index() == 0:
      save_config(workdir, config, source.class_names)
    rate = optimizer_lib.schedule(train.optimizer, train.steps)
    step = step_lib.make(trained, optimizer, rate, config, mesh)
    self._steps = advance.make(step, config, source, mesh, places, data_state)
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
      if self.step >= total:
        return
      log = self._open_log(stack)
      self._compile()
      folder = pathlib.Path(self.workdir) / 'profile'
      profile = Profile(folder, self.config.train.profile_steps)
      stack.callback(profile.close)
      while True:
        profile.before(self.step + 1)
        ahead = events.steps_ahead(self.config, self.step)
        self.state, metrics, steps = self._steps(self.state, ahead)
        self.step += steps
        profile.after(self.step, metrics)
        log.add(self.step, metrics, steps)
        last, stop = self.step == total, stopping()
        measured = {}
        if not stop:
          # Before saving, so that a run killed here does it when resumed.
          try:
            self._measure(log, last, stopping, measured)
          except Stopped:
            stop = True
        if self.checkpoints.due(self.step, measured) or last or stop:
          log.drain()  # what is not finite is not saved
          log.pause()
          self._save(measured, last or stop)
        if last or stop:
          break
      self.speed['trained_images_per_second'] = log.rate()

  def _measure(
    self, log: Log, last: bool, stopping: Stopping, measured: dict[str, float]
  ):
    """Evaluates and attacks if it is time to, until it is asked to stop."""
    evaluates = last or events.due(self.step, self.config.eval.every_steps)
    attacks = not last and events.due(self.step, self.config.attack.every_steps)
    if not (evaluates or attacks):
      return
    log.drain()
    if evaluates:
      measured |= self.evaluate(stopping.between)
      log.write(self.step, measured)
    if attacks:
      robust = _robust_accuracies(self.attack(on_turn=stopping.check))
      log.write(self.step, robust)
      measured |= robust
    log.pause()

  def evaluate(self, between: Callable = iter) -> dict[str, float]:
    """Clean accuracy and loss on the evaluation split.

    Args:
      between: what goes over the batches, and may raise.
    """
    batches = eval_batches(
      self.config.data,
      self.held_out,
      batch_size=batch_size(self.config, 'eval'),
      sharding=mesh_lib.batch_sharding(self.mesh),
    )
    with contextlib.closing(batches):
      params = self.state.evaluated()
      found = accuracy.evaluate(self._forward, params, between(batches))
    told = '_given_class' if self._is_told else ''
    return {f'eval_{name}{told}': value for name, value in found.items()}

  def attack(
    self,
    progress: str | None = None,
    on_turn: Callable[[], None] = lambda: None,
  ) -> dict:
    """Attacks the evaluation split and writes the results; see `attack`."""
    classifier = Classifier(
      self.model,
      self.state.evaluated(),
      self.config,
      self.mesh,
      str(self.workdir),
      self.step,
      fingerprint(self.workdir, self.step),
    )
    config = self._attacker.config
    job = Job(classifier, self.held_out, config, self.workdir)
    return attack(job, self._attacker, progress, on_turn, self.speed)

  @property
  def _is_told(self) -> bool:
    """Whether the router is told the class, so that nothing is classified."""
    model = self.config.model
    return bool(model.experts) and model.router.name == 'oracle'

  @functools.cached_property
  def _forward(self):
    return accuracy.make(self.model, self.config)

  @functools.cached_property
  def _attacker(self):
    return Attacker(self.model, _attacked(self.config))

  def _open_log(self, stack: contextlib.ExitStack) -> Log:
    say(
      f'{self.workdir}: {self.about["parameters"]:,} parameters, '
      f'{self.about["flops_per_image"] / 1e6:,.2f} MFLOP an image, '
      f'{len(self.source):,} images, mesh {dict(self.mesh.shape)}'
    )
    if self._is_told:
      say(
        'the oracle router is told the class of each image: accuracies of this '
        'run are no classification'
      )
    if jax.process_index():
      return Log(self.config, self._last_good, None, None)
    writer = MetricWriter(self.workdir, after_step=self.step)
    stack.callback(writer.close)
    progress = Progress(self.config.train.steps, 'train', done=self.step)
    stack.callback(progress.close)
    return Log(self.config, self._last_good, writer, progress)

  def _last_good(self) -> str | None:
    steps = self.checkpoints.steps()
    return str(self.checkpoints.path(steps[-1])) if steps else None

  def _compile(self):
    start = time.perf_counter()
    compiled = self._steps.compile(self.state)
    seconds = time.perf_counter() - start
    counted = program.flops(compiled, self.mesh)
    wanted = 3 * self.about['flops_per_image'] * self.config.train.batch_size
    self.speed['compile_seconds'] = seconds
    text = f'a step is {wanted / 1e9:,.2f} GFLOP by formula'
    if counted is not None:
      text += f', {counted * self.mesh.size / 1e9:,.2f} as compiled'
    say(f'compiled in {seconds:.1f} s; {text}')

  def _restore(self, saved: int, places) -> dict:
    wanted = abstract(self.state.trees(), places.trees())
    trees, extra = self.checkpoints.restore(saved, wanted)
    self.state = state_lib.TrainState.of(trees)
    self.step = saved
    say(f'resumed from step {saved} of {self.workdir}')
    return extra['data']

  def _start_from(self):
    params = start_from(
      self.config, self.state.params, self.workdir, self.source.class_names
    )
    ema = jax.tree.map(jnp.copy, params) if self.config.train.ema else ()
    self.state = self.state.replace(params=params, ema=ema)

  def _save(self, measured: dict[str, float], now: bool):
    extra = {'data': self._steps.batches.state()}
    trees = self.state.trees()
    self.checkpoints.save(self.step, trees, extra, measured, now)


def _attacked(config: ConfigDict) -> ConfigDict:
  """The configuration of the attack that ends a run."""
  config = config.copy_and_resolve_references()
  config.data.split = config.data.eval_split
  return config


def _robust_accuracies(results: dict) -> dict[str, float]:
  return {
    f'robust_accuracy/{eps_name(row["eps"])}': row['robust_accuracy']['value']
    for row in results['rows']
  }
