"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import json
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import fingerprint, locate, read_config
from vmoe_robust.config import (
  MACHINE_FIELDS,
  WHOLE_ATTACKS,
  UserError,
  batch_size,
  default,
  differences,
  from_json,
  validate,
)
from vmoe_robust.data import Source, eval_batches, open_source
from vmoe_robust.evaluate import outcome, robustness
from vmoe_robust.evaluate.ensembled import Ensembled
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.evaluate.kept import Kept, identity
from vmoe_robust.evaluate.load import Restored, restore
from vmoe_robust.evaluate.snapshot import release
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Model
from vmoe_robust.report.lock import locked
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.results import RESULTS, require_writable
from vmoe_robust.report.terminal import say

# What a mode says for itself, with the fields of its name; everything else is
# the saved run's.
_OWN = (
  *('config.mode', 'config.seed', 'config.checkpoint'),
  *('config.data.name', 'config.data.split', 'config.data.on_corrupt'),
  *MACHINE_FIELDS,
)
# In the work directory, what a run that is cut short leaves.
PROGRESS = 'unfinished'
# Numbers that saved x_adv may have, 8 GB of them; they are held in memory.
_MOST_PIXELS = 2e9


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Attacks `config.checkpoint`, writes the results and prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  saved_in, step = locate(config.checkpoint)
  config = combine(config, read_config(saved_in))
  validate(config, jax.device_count())
  require_writable(workdir)
  with locked(workdir):
    if is_finished(config, workdir, step):
      return
    source = open_source(config.data, config.data.split)
    check_fit(config, source)
    restored = restore(saved_in, step, config)
    program = make(restored.model, config)
    results = attack(restored, source, program, workdir, {}, PROGRESS)
    say(outcome.closing(results, workdir))


def make(model: Model, config: ConfigDict) -> robustness.Program | Ensembled:
  """What carries out the attack of `config.attack`."""
  whole = config.attack.name in WHOLE_ATTACKS
  return (robustness.Program if whole else Ensembled)(model, config)


def combine(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
  """The configuration of a mode on the model and the data of a saved run.

  Its own are the fields of its name, such as `config.attack`. Of `config.data`
  the name, the directory and the split count where they are not empty, and how
  to read; the rest is as the model was trained.

  Raises:
    UserError: a field was set that would have no effect.
  """
  own = (*_OWN, f'config.{config.mode}.')
  ignored = differences(config, default(), own)
  if ignored:
    raise UserError(
      f'{ignored[0].split(" ")[0]} has no effect with config.mode='
      f'{config.mode!r}, where the model and the data are those of the '
      "checkpoint's own run; leave it out"
    )
  out = saved.copy_and_resolve_references()
  for name in ('mode', 'seed', 'checkpoint', config.mode, 'mesh'):
    out[name] = config[name]
  out.data.split = config.data.split or saved.data.eval_split
  out.data.name = config.data.name or saved.data.name
  out.data.dir = config.data.dir or saved.data.dir
  for name in ('on_corrupt', 'threads', 'workers', 'prefetch'):
    out.data[name] = config.data[name]
  return out


def attack(
  restored: Restored,
  source: Source,
  program: robustness.Program | Ensembled,
  workdir: str | os.PathLike,
  about: dict,
  progress: str | None = None,
) -> dict:
  """Attacks every example of a source; returns what is in `results.json`.

  Args:
    restored: what to attack.
    source: the examples.
    program: of the model; `program.config` says how.
    workdir: where the results go.
    about: what else the results should say.
    progress: a folder in it from which an attack that was cut short goes on;
      None: it does not.
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
  if folder is None and jax.process_count() > 1:
    # Processes exchange images by files. Old ones are of no use.
    folder = Path(workdir, 'attack')
    release(folder)
  same = identity(config, restored.step)
  if isinstance(program, Ensembled):
    attacked = program(restored.params, source, folder, same)
  else:
    attacked = _in_batches(restored, source, program, Kept(folder, same))
  about = about | {
    'checkpoint': restored.workdir,
    'checkpoint_checksum': fingerprint(restored.workdir, restored.step),
    'step': restored.step,
    'split': f'{config.data.name} {config.data.split}',
    'experts': config.attack.experts,
    'attacked_images_per_second': attacked.images_per_second,
    'corrupt_images': [source.describe(i) for i in attacked.corrupt],
  }
  results = outcome.write(workdir, attacked, config, about, source.class_names)
  if folder:
    release(folder)
  return results


def _in_batches(restored, source, program, kept) -> robustness.Attacked:
  config, radii = program.config, len(program.config.attack.eps)
  batches = eval_batches(
    config.data,
    source,
    batch_size=batch_size(config, 'attack'),
    sharding=batch_sharding(restored.mesh),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    on_batch = lambda done, images: None
    if jax.process_index() == 0:
      progress = Progress(len(batches) * radii, 'attack', 'batch')
      stack.callback(progress.close)
      on_batch = progress.update
    return robustness.run(program, restored.params, batches, on_batch, kept)


def is_finished(
  config: ConfigDict, workdir: str | os.PathLike, step: int
) -> bool:
  """Whether this very attack on this step is done; if so, shows its table.

  Raises:
    UserError: the work directory has the results of another attack.
  """
  path = Path(workdir) / RESULTS
  if not path.exists():
    return False
  results = json.loads(path.read_text())
  if config.mode == 'train' and results['step'] < step:
    return False  # of an attack while training
  found = from_json(json.dumps(results['config']))
  changed = differences(config, found, MACHINE_FIELDS)
  if results['step'] != step:
    changed.append(f'step {step} (was {results["step"]})')
  if changed:
    raise UserError(
      f'--workdir={workdir} has the results of another attack: '
      f'{"; ".join(changed[:3])}; attack with --config=configs/attack_pgd.py '
      'and another --workdir'
    )
  say(f'{workdir} is finished:\n\n{outcome.closing(results, workdir)}')
  return True
