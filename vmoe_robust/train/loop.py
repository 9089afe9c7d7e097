"""The story of a run, from configuration to results."""

import contextlib
import json
import math
import signal
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import (
  Checkpoints,
  abstract,
  read_config,
  save_config,
)
from vmoe_robust.config import UserError, batch_size, differences, mesh_shape
from vmoe_robust.data import eval_batches, open_source, train_batches
from vmoe_robust.evaluate import accuracy, outcome
from vmoe_robust.evaluate import attack as attack_lib
from vmoe_robust.evaluate.load import Restored
from vmoe_robust.mesh.hardware import peak_flops
from vmoe_robust.models import build, flops
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.report.progress import Progress
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib
from vmoe_robust.train.init_from import start_from

# Fields that may change between two starts in one work directory: they alter
# neither the model nor what it learns from each step.
_FREE = (
  'config.mesh.',
  'config.save.',
  'config.eval.',
  'config.attack.',
  'config.train.log_every',
  'config.train.remat',
  'config.data.dir',
  'config.data.threads',
  'config.data.workers',
  'config.data.prefetch',
)


def run(config: ConfigDict, workdir: str):
  """Trains `config.model`, then attacks it; resumes what it finds started."""
  sources = [
    open_source(config.data, split)
    for split in (config.data.split, config.data.eval_split)
  ]
  config = _resolve(config, sources)
  _check_same_run(config, workdir)
  if _is_finished(config, workdir):
    return
  mesh = mesh_lib.create(mesh_shape(config, jax.device_count()))
  trainer = Trainer(config, workdir, mesh, sources)
  if not trainer.train():
    trainer.say(
      f'stopped at step {trainer.step} and saved; the same command resumes'
    )
    return
  if config.attack.at_end:
    results = trainer.attack()
    trainer.say('\n' + outcome.closing(results, workdir))
  else:
    trainer.say(f'finished; checkpoints are in {workdir}/checkpoints')


class Trainer:
  """Model, state, data and files of one run."""

  def __init__(self, config: ConfigDict, workdir: str, mesh, sources):
    """Builds everything and goes back to the newest whole checkpoint."""
    self.config, self.workdir, self.mesh = config, workdir, mesh
    self.source, self.held_out = sources
    size = config.data.image_size
    shape = (size, size, config.model.channels)
    self.model = build(config.model, shape, mesh, config.train.remat)
    optimizer = optimizer_lib.make(config.train.optimizer, config.train.steps)
    self.state, shardings = state_lib.create(
      self.model,
      optimizer,
      config.seed,
      config.train.ema > 0,
      mesh,
      config.mesh.fsdp,
    )
    self.checkpoints = Checkpoints(workdir, config.save)
    data_state = self._restore(shardings)
    if jax.process_index() == 0:
      save_config(workdir, config)
    rate = optimizer_lib.schedule(config.train.optimizer, config.train.steps)
    step = step_lib.make(self.model, optimizer, rate, config, mesh)
    self._step = jax.jit(
      step, donate_argnums=0, out_shardings=(shardings, None)
    )
    self._forward = accuracy.make(self.model, config)
    self.batches = train_batches(
      config.data,
      self.source,
      batch_size=config.train.batch_size,
      seed=config.seed,
      sharding=mesh_lib.batch_sharding(mesh),
      state=data_state,
    )
    self.about = {
      'parameters': sum(x.size for x in jax.tree.leaves(self.state.params)),
      'flops_per_image': flops.forward(
        config.model, size, config.model.channels
      ),
    }

  def train(self) -> bool:
    """Trains to the last step; False if it was asked to stop before."""
    config, total = self.config, self.config.train.steps
    if self.step >= total:
      return True
    self._describe()
    writer = progress = None
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      stack.callback(self.batches.close)
      stopping = stack.enter_context(_Stopping())
      if jax.process_index() == 0:
        writer = MetricWriter(self.workdir, after_step=self.step)
        stack.callback(writer.close)
        progress = Progress(total, 'train', done=self.step)
        stack.callback(progress.close)
      batch = next(self.batches)
      step = self._compile(batch)
      log = _Log(config, self.checkpoints, writer, progress)
      while True:
        self.state, metrics = step(self.state, batch)
        self.step += 1
        log.add(self.step, metrics)
        last = self.step == total or stopping(self.step)
        if last or _due(self.step, config.save.every_steps):
          log.drain()  # nothing that is not finite is saved
          self._save()
        if _due(self.step, config.eval.every_steps) and not last:
          log.write(self.step, self.evaluate())
        if _due(self.step, config.attack.every_steps) and not last:
          log.write(self.step, self._attack_metrics())
        if last:
          break
        batch = next(self.batches)
      self.about['trained_images_per_second'] = log.rate()
      if self.step == total:
        log.write(self.step, self.evaluate())
    return self.step == total

  def evaluate(self) -> dict[str, float]:
    """Clean accuracy and loss on the evaluation split."""
    batches = eval_batches(
      self.config.data,
      self.held_out,
      batch_size=batch_size(self.config, 'eval'),
      sharding=mesh_lib.batch_sharding(self.mesh),
    )
    with contextlib.closing(batches):
      found = accuracy.evaluate(
        self._forward, self.state.evaluated(), batches
      )
    return {f'eval_{name}': value for name, value in found.items()}

  def attack(self) -> dict:
    """Attacks the evaluation split and writes the results."""
    restored = Restored(
      self.model,
      self.state.evaluated(),
      self.config,
      self.mesh,
      self.workdir,
      self.step,
    )
    config = self.config.copy_and_resolve_references()
    config.data.split = config.data.eval_split
    about = {'checkpoint': self.workdir, 'step': self.step} | self.about
    return attack_lib.attack(
      restored, self.held_out, config, self.workdir, about
    )

  def say(self, text: str):
    """Prints, on the first process alone."""
    if jax.process_index() == 0:
      print(text, flush=True)

  def _attack_metrics(self) -> dict[str, float]:
    (sweep,) = self.attack()['attacks'].values()
    return {
      f'robust_accuracy/{eps}': found['robust_accuracy']
      for eps, found in sweep.items()
    }

  def _restore(self, shardings) -> dict | None:
    """Goes back to the newest whole checkpoint; returns the data's state."""
    saved = self.checkpoints.newest_whole()
    if saved is None:
      self.step = 0
      if self.config.init_from:
        params, fresh = start_from(self.config.init_from, self.state.params)
        ema = jax.tree.map(jax.numpy.copy, params) if self.config.train.ema else ()
        self.state = self.state.replace(params=params, ema=ema)
        self.say(f'started from {self.config.init_from}; fresh: {fresh}')
      return None
    places = abstract(self.state, shardings)
    trees, extra = self.checkpoints.restore(saved, _trees(places))
    self.state = state_lib.TrainState(
      params=trees['params'], ema=trees.get('ema', ()), **trees['rest']
    )
    self.step = saved
    self.say(f'resumed from step {saved} of {self.workdir}')
    return extra['data']

  def _save(self):
    if self.step not in self.checkpoints.steps():
      extra = {'data': self.batches.state()}
      self.checkpoints.save(self.step, _trees(self.state), extra)

  def _compile(self, batch):
    start = time.perf_counter()
    compiled = self._step.lower(self.state, batch).compile()
    seconds = time.perf_counter() - start
    counted = compiled.cost_analysis() or {}
    self.about['compile_seconds'] = seconds
    self.say(
      f'compiled in {seconds:.1f} s; a step is '
      f'{counted.get("flops", 0) * self.mesh.size / 1e9:,.2f} GFLOP as '
      'compiled, '
      f'{3 * self.about["flops_per_image"] * self.config.train.batch_size / 1e9:,.2f}'
      ' by formula'
    )
    return compiled

  def _describe(self):
    shape = dict(self.mesh.shape)
    self.say(
      f'{self.workdir}: {self.about["parameters"]:,} parameters, '
      f'{self.about["flops_per_image"] / 1e6:,.2f} MFLOP an image, '
      f'{len(self.source):,} images, mesh {shape}'
    )


class _Log:
  """Metrics of past steps, read back late so that the device never waits."""

  def __init__(self, config, checkpoints, writer, progress):
    self._config, self._checkpoints = config, checkpoints
    self._writer, self._progress = writer, progress
    self._pending: list[tuple[int, dict]] = []
    self._laps: list[tuple[float, int]] = []  # time and step at each reading

  def add(self, step: int, metrics: dict):
    """Takes a step's metrics; reads those of earlier steps now and then."""
    self._pending.append((step, metrics))
    every = min(self._config.train.log_every, max(step, 1))
    if len(self._pending) > every:
      self._read(self._pending[:-1])
      self._pending = self._pending[-1:]

  def drain(self):
    """Waits for all steps."""
    self._read(self._pending)
    self._pending = []

  def write(self, step: int, metrics: dict[str, float]):
    """Writes metrics that are there already."""
    if self._writer:
      self._writer.write(step, metrics)

  def rate(self) -> float:
    """Images a second since the first reading, over all steps."""
    (t0, s0), (t1, s1) = self._laps[0], self._laps[-1]
    images = (s1 - s0) * self._config.train.batch_size
    return images / (t1 - t0) if t1 > t0 else 0.0

  def _read(self, pending):
    steps = [step for step, _ in pending]
    found = jax.device_get([metrics for _, metrics in pending])
    for step, metrics in zip(steps, found, strict=True):
      for name in ('loss', 'gradient_norm'):
        if not math.isfinite(metrics[name]):
          raise self._diverged(step, name, metrics[name])
    if not steps:
      return
    before = self._laps[-1] if self._laps else None
    self._laps.append((time.perf_counter(), steps[-1]))
    images = len(steps) * self._config.train.batch_size
    if before:
      speed = images / max(self._laps[-1][0] - before[0], 1e-9)
      found[-1] = found[-1] | _speed(speed, self._config)
    self._show(steps, found, images)

  def _show(self, steps, found, images):
    every = self._config.train.log_every
    for step, metrics in zip(steps, found, strict=True):
      if step % every == 0 or step in (1, self._config.train.steps):
        self.write(step, metrics)
    if self._progress:
      last = found[-1]
      text = f'loss {last["loss"]:.3f}, accuracy {last["accuracy"]:.3f}'
      self._progress.update(steps[-1], images, text)

  def _diverged(self, step, name, value):
    steps = self._checkpoints.steps()
    good = f'step {steps[-1]}' if steps else 'none yet'
    return UserError(
      f'{name} is {value} at step {step}; the last good checkpoint is {good}, '
      'and nothing was saved after it. Try a lower '
      'config.train.optimizer.learning_rate, more '
      'config.train.optimizer.warmup_steps, a lower '
      'config.train.optimizer.clip_norm, or '
      "config.model.compute_dtype='float32'"
    )


def _speed(images_per_second: float, config: ConfigDict) -> dict[str, float]:
  """Speed and, where the device's peak is known, model FLOPs utilisation."""
  out = {'images_per_second': images_per_second}
  peak = peak_flops(jax.devices()[0].device_kind)
  if peak:
    model = config.model
    image = 3 * flops.forward(model, config.data.image_size, model.channels)
    out['mfu'] = images_per_second * image / (peak * jax.device_count())
  return out


class _Stopping:
  """Whether SIGTERM or an interrupt asked the run to stop, on any host."""

  def __enter__(self):
    self._asked = False
    self._before = {
      name: signal.signal(name, self._ask)
      for name in (signal.SIGTERM, signal.SIGINT)
    }
    return self

  def __exit__(self, *_):
    for name, handler in self._before.items():
      signal.signal(name, handler)

  def __call__(self, step: int) -> bool:
    return self._asked

  def _ask(self, number, _):
    self._asked = True
    # A second signal ends the process as usual.
    signal.signal(number, self._before[number])


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _trees(state: state_lib.TrainState) -> dict:
  """The state as a checkpoint holds it: evaluation reads one tree alone."""
  trees = {
    'params': state.params,
    'rest': dict(step=state.step, key=state.key, opt_state=state.opt_state),
  }
  return trees | ({'ema': state.ema} if jax.tree.leaves(state.ema) else {})


def _resolve(config: ConfigDict, sources) -> ConfigDict:
  """Fills in what the data decide."""
  config = config.copy_and_resolve_references()
  source = sources[0]
  for name, there in (
    ('num_classes', source.num_classes),
    ('channels', source.channels),
  ):
    if config.model[name] not in (0, there):
      raise UserError(
        f'config.model.{name}={config.model[name]} does not fit '
        f'config.data.name={config.data.name!r}, which has {there}; use {there}'
      )
    config.model[name] = there
  if source.multi_label != (config.train.loss == 'sigmoid'):
    fit = 'sigmoid' if source.multi_label else 'softmax'
    several = 'several labels' if source.multi_label else 'one label'
    raise UserError(
      f'config.train.loss={config.train.loss!r} does not fit '
      f'config.data.name={config.data.name!r}, which has {several} an image; '
      f'use {fit!r}'
    )
  return config


def _check_same_run(config: ConfigDict, workdir: str):
  """Refuses a work directory that cannot be written or has another run."""
  path = Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.writable-{jax.process_index()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} is not writable: {error}; choose another'
    ) from error
  saved = read_config(workdir)
  if saved is None:
    return
  changed = [d for d in differences(config, saved) if not d.startswith(_FREE)]
  if changed:
    raise UserError(
      f'--workdir={workdir} has a run with {"; ".join(changed[:5])}; choose '
      'another --workdir for this one, or set the fields back to resume'
    )


def _is_finished(config: ConfigDict, workdir: str) -> bool:
  path = Path(workdir) / outcome.RESULTS
  if not path.exists():
    return False
  results = json.loads(path.read_text())
  if results['step'] < config.train.steps:
    return False  # of an attack while training
  if jax.process_index() == 0:
    print(f'{workdir} is finished:\n\n{outcome.closing(results, workdir)}')
  return True
