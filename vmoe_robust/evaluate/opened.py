"""Opening what is to be judged: weights, data, and a place for the results."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights, open_weights
from vmoe_robust.config import (
  MACHINE_FIELDS,
  UserError,
  default,
  differences,
  from_json,
  validate,
)
from vmoe_robust.data import Source, open_source
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.evaluate.kept import machine_fields
from vmoe_robust.evaluate.load import (
  Classifier,
  origin,
  recognised,
  restore,
  select,
)
from vmoe_robust.files import locked, require_writable
from vmoe_robust.report.results import RESULTS
from vmoe_robust.report.terminal import say

# What a mode says for itself, with the fields of its name; everything else is
# the saved run's.
_OWN = (
  *('config.mode', 'config.seed', 'config.checkpoint', 'config.num_selected'),
  *('config.data.name', 'config.data.split', 'config.data.on_corrupt'),
  'config.data.on_unlabelled',
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


@dataclasses.dataclass(frozen=True)
class Opened:
  """A checkpoint and the examples it is judged on."""

  classifier: Classifier
  source: Source
  config: ConfigDict
  workdir: str | os.PathLike


@contextlib.contextmanager
def opened(
  config: ConfigDict,
  workdir: str | os.PathLike,
  closing: Callable[[dict, str | os.PathLike], str],
) -> Iterator[Opened | None]:
  """What `config` is to judge, or None if that is done and now shown.

  Other runs are kept out of the work directory.

  Args:
    config: of a mode; `config.checkpoint` names the model.
    workdir: where the results go.
    closing: `(results, workdir)` to the text that ends a run.

  Raises:
    UserError: the checkpoint, the data, the configuration or the results that
      are in the work directory do not fit.
  """
  weights = open_weights(config.checkpoint, field='config.checkpoint')
  with contextlib.closing(weights):
    config = combine(config, weights)
    validate(config, jax.device_count())
    require_writable(workdir)
    with locked(workdir):
      _, step, checksum = origin(weights)
      if finished(config, workdir, closing, step, checksum):
        yield None
        return
      source = open_source(config.data, config.data.split)
      source = check_fit(config, source, weights.class_names)
      yield Opened(restore(weights, config), source, config, workdir)


def finished(
  config: ConfigDict,
  workdir: str | os.PathLike,
  closing: Callable[[dict, str | os.PathLike], str],
  step: int | None,
  checksum: str | None = None,
) -> bool:
  """Whether a work directory has these very results; if so, shows them.

  Args:
    config: that the results are to be of.
    workdir: where they would be.
    closing: see `opened`.
    step: of the weights that are judged, if they are of a run.
    checksum: of these weights; None: not compared.

  Raises:
    UserError: it has other results.
  """
  path = Path(workdir) / RESULTS
  if not path.exists():
    return False
  results = json.loads(path.read_text())
  training, before = config.mode == 'train', results['step']
  if training and before is not None and before < step:
    return False  # of an attack while training
  found = from_json(json.dumps(results['config']))
  changed = differences(config, found, machine_fields(config))
  if before != step:
    changed.append(f'step {step} (was {before})')
  elif checksum not in (None, results.get('checkpoint_checksum')):
    changed.append('weights that changed since')
  if changed:
    way = (
      'attack with --config=configs/attack_pgd.py and' if training else 'use'
    )
    raise UserError(
      f'--workdir={workdir} has other results: {"; ".join(changed[:3])}; '
      f'{way} another --workdir'
    )
  say(f'{workdir} is finished:\n\n{closing(results, workdir)}')
  return True


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
  how = ('on_corrupt', 'on_unlabelled', 'threads', 'workers', 'prefetch')
  for name in (*how, 'cache_bytes'):
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
