"""`config.mode = 'attack'`: attacks a saved checkpoint, and nothing else."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights, fingerprint, open_weights
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
from vmoe_robust.evaluate.load import (
  Classifier,
  origin,
  recognised,
  restore,
  select,
)
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
  *('config.mode', 'config.seed', 'config.checkpoint', 'config.num_selected'),
  *('config.data.name', 'config.data.split', 'config.data.on_corrupt'),
  *MACHINE_FIELDS,
)
# How images share the experts' slots, with `config.attack.experts='capacity'`.
_ROOM = ('capacity_factor', 'batch_priority', 'group_images')
# What weights that come without a configuration do not tell, besides.
_UNTOLD = (
  *('config.data.', 'config.model.mean', 'config.model.std'),
  'config.model.compute_dtype',
  *(f'config.model.router.{name}' for name in _ROOM),
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
  weights = open_weights(config.checkpoint, field='config.checkpoint')
  with contextlib.closing(weights):
    config = combine(config, weights)
    validate(config, jax.device_count())
    require_writable(workdir)
    with locked(workdir):
      if is_finished(config, workdir, origin(weights)[1]):
        return
      source = open_source(config.data, config.data.split)
      check_fit(config, source)
      classifier = restore(weights, config)
      program = make(classifier.model, config)
      results = attack(classifier, source, program, workdir, {}, PROGRESS)
      say(outcome.closing(results, workdir))


def make(model: Model, config: ConfigDict) -> robustness.Program | Ensembled:
  """What carries out the attack of `config.attack`."""
  whole = config.attack.name in WHOLE_ATTACKS
  return (robustness.Program if whole else Ensembled)(model, config)


def combine(config: ConfigDict, weights: Weights) -> ConfigDict:
  """The configuration of a mode on the model and the data of saved weights.

  Its own are the fields of its name, such as `config.attack`. Of `config.data`
  the name, the directory and the split count where they are not empty, and how
  to read; the rest is as the model was trained. Weights that come without a
  configuration tell the model's shapes alone: then all of `config.data` counts,
  and what else of `config.model` it takes.

  Raises:
    UserError: a field was set that would have no effect, or one is missing.
  """
  saved, own = weights.config, (*_OWN, f'config.{config.mode}.')
  if saved is None:
    saved, own = _told(config, weights), (*own, *_UNTOLD)
  ignored = differences(config, default(), own)
  if ignored:
    raise UserError(
      f'{ignored[0].split(" ")[0]} has no effect with config.mode='
      f'{config.mode!r}, where the model and the data are those of the '
      "checkpoint's own run; leave it out"
    )
  out = saved.copy_and_resolve_references()
  own = ('mode', 'seed', 'checkpoint', 'num_selected', config.mode, 'mesh')
  for name in own:
    out[name] = config[name]
  select(out, config.num_selected, 'config.num_selected')
  out.data.split = config.data.split or saved.data.eval_split
  out.data.name = config.data.name or saved.data.name
  out.data.dir = config.data.dir or saved.data.dir
  for name in ('on_corrupt', 'threads', 'workers', 'prefetch'):
    out.data[name] = config.data[name]
  return out


def _told(config: ConfigDict, weights: Weights) -> ConfigDict:
  """What weights tell without a configuration, and what that of a mode does."""
  out, where = recognised(weights), f'config.checkpoint={weights.where!r}'
  size = out.data.image_size
  if not config.data.name:
    raise UserError(
      f'{where} does not say which data it was trained on; give them with '
      '--config.data.name=NAME, --config.data.dir=DIR and --config.data.split'
    )
  if config.data.image_size not in (default().data.image_size, size):
    raise UserError(
      f'config.data.image_size={config.data.image_size} does not fit {where}, '
      f'which takes {size}; leave it out'
    )
  out.data = config.data.copy_and_resolve_references()
  out.data.image_size = size
  for name in ('mean', 'std', 'compute_dtype'):
    out.model[name] = config.model[name]
  for name in _ROOM:
    out.model.router[name] = config.model.router[name]
  return out


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
  if folder is None and jax.process_count() > 1:
    # Processes exchange images by files. Old ones are of no use.
    folder = Path(workdir, 'attack')
    release(folder)
  where, step = classifier.where, classifier.step
  same = identity(config, step)
  if isinstance(program, Ensembled):
    attacked = program(classifier.params, source, folder, same, on_turn)
  else:
    attacked = _in_batches(
      classifier, source, program, Kept(folder, same), on_turn
    )
  about = about | {
    'checkpoint': where,
    'checkpoint_checksum': None if step is None else fingerprint(where, step),
    'step': step,
    'split': f'{config.data.name} {config.data.split}',
    'experts': config.attack.experts,
    'attacked_images_per_second': attacked.images_per_second,
    'corrupt_images': [source.describe(i) for i in attacked.corrupt],
  }
  results = outcome.write(workdir, attacked, config, about, source.class_names)
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


def is_finished(
  config: ConfigDict, workdir: str | os.PathLike, step: int | None
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
