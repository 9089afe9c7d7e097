"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.config import (
  UserError,
  batch_size,
  differences,
  from_json,
  validate,
  validate_attack,
)
from vmoe_robust.data import Source, eval_batches, open_source
from vmoe_robust.evaluate import outcome, robustness
from vmoe_robust.evaluate.load import Restored, load
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.results import require_writable


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Attacks `config.checkpoint`, writes the results and prints the table."""
  validate_attack(config.attack)
  require_writable(workdir)
  restored = load(config.checkpoint, config.mesh)
  config = combine(config, restored.config)
  validate(config, jax.device_count())
  if finished(workdir, config):
    return
  source = open_source(config.data, config.data.split)
  if source.num_classes != config.model.num_classes:
    raise UserError(
      f'config.data.name={config.data.name!r} has {source.num_classes} '
      f'classes and the model of config.checkpoint='
      f'{config.checkpoint!r} has {config.model.num_classes}; attack it on '
      f'{restored.config.data.name!r}'
    )
  programs = robustness.programs(restored.model, config)
  results = attack(restored, source, config, workdir, programs, {})
  if jax.process_index() == 0:
    print(outcome.closing(results, workdir))


def combine(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
  """The attack's configuration on the model and data of the saved run.

  Of `config.data` the fields that differ from '' and 0 count; the rest is as
  the model was trained.
  """
  out = saved.copy_and_resolve_references()
  for name in ('mode', 'seed', 'checkpoint', 'attack', 'mesh'):
    out[name] = config[name]
  out.data.split = config.data.split or saved.data.eval_split
  if config.data.name:
    out.data.name = config.data.name
  if config.data.dir:
    out.data.dir = config.data.dir
  for name in ('on_corrupt', 'threads', 'workers', 'prefetch'):
    out.data[name] = config.data[name]
  return out


def attack(
  restored: Restored,
  source: Source,
  config: ConfigDict,
  workdir: str | os.PathLike,
  programs: tuple[Callable, Callable],
  about: dict,
) -> dict:
  """Attacks every example of a source; returns what is in `results.json`.

  Args:
    restored: what to attack.
    source: the examples.
    config: the whole configuration.
    workdir: where the results go.
    programs: of `robustness.programs`.
    about: what else the results should say.

  Raises:
    RuntimeError: a sound attack left its ball or [0, 1], so that its numbers
      mean nothing.
  """
  batches = eval_batches(
    config.data,
    source,
    batch_size=batch_size(config, 'attack'),
    sharding=batch_sharding(restored.mesh),
  )
  total = len(batches) * len(config.attack.eps)
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    on_batch = lambda done, images: None
    if jax.process_index() == 0:
      progress = Progress(total, 'attack', 'batch')
      stack.callback(progress.close)
      on_batch = progress.update
    columns, loads, rate = robustness.run(
      programs, restored.params, batches, config, on_batch
    )
  bad = robustness.violations(columns, config.attack)
  if config.attack.name != 'paper' and any(bad.values()):
    raise RuntimeError(f'the attack left its bounds: {bad}')
  about = about | {
    'checkpoint': restored.workdir,
    'step': restored.step,
    'split': f'{config.data.name} {config.data.split}',
    'experts': config.attack.experts,
    'attacked_images_per_second': rate,
    'corrupt_images': batches.corrupt,
  }
  if jax.process_index():
    return outcome.summarise(columns, loads, config) | about
  return outcome.write(workdir, columns, loads, config, about)


def finished(workdir: str | os.PathLike, config: ConfigDict) -> bool:
  """Whether this very attack is done; if so, says so and shows its table.

  Raises:
    UserError: the work directory has the results of something else.
  """
  path = Path(workdir) / outcome.RESULTS
  if not path.exists():
    return False
  results = json.loads(path.read_text())
  found = from_json(json.dumps(results['config']))
  changed = differences(config, found)
  if changed:
    raise UserError(
      f'--workdir={workdir} has the results of another attack: '
      f'{"; ".join(changed[:3])}; choose another --workdir'
    )
  if jax.process_index() == 0:
    print(f'{workdir} is finished:\n\n{outcome.closing(results, workdir)}')
  return True
