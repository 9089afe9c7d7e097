"""The configuration of a mode on the model and the data of saved weights."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights
from vmoe_robust.config import (
  MACHINE_FIELDS,
  UserError,
  attacks,
  default,
  differences,
  flatten,
)
from vmoe_robust.evaluate.classifier import recognised, select

# How a mode is carried out; saving, logging and profiling are of training.
_MACHINE = tuple(
  name
  for name in MACHINE_FIELDS
  if not name.startswith(('config.save.', 'config.train.'))
)
# What a mode says for itself, with the fields of its name; everything else is
# the saved run's.
_OWN = (
  *('config.mode', 'config.seed', 'config.checkpoint', 'config.num_selected'),
  *('config.data.name', 'config.data.split', 'config.data.on_corrupt'),
  'config.data.on_unlabelled',
  *_MACHINE,
)
_GROUPS = ('config.attack.', 'config.study.')
# When a training run attacks.
_OF_TRAINING = ('config.attack.every_steps', 'config.attack.at_end')
# How images share the experts' slots, with `config.attack.experts='capacity'`.
_ROOM = ('capacity_factor', 'batch_priority', 'group_images')
# What weights that come without a configuration do not tell, besides.
_UNTOLD = (
  *('config.data.', 'config.model.mean', 'config.model.std'),
  'config.model.compute_dtype',
  *(f'config.model.router.{name}' for name in _ROOM),
)


def combine(config: ConfigDict, weights: Weights | None) -> ConfigDict:
  """The configuration of a mode on the model and the data of saved weights.

  Its own are the fields of its name, such as `config.attack`; of `config.study`
  the name and the fields of the study that it names, and `config.attack` if
  that study attacks. Of `config.data`
  the name, the directory and the split count where they are not empty, and how
  to read; the rest is as the model was trained. Weights that come without a
  configuration tell the model's shapes alone: then all of `config.data` counts,
  and what else of `config.model` it takes. A study that needs no weights (None)
  takes only the fields of its name.

  Raises:
    UserError: a field was set that would have no effect, or one is missing.
  """
  if weights is None:
    return _alone(config)
  if weights.config is None:
    return combine_saved(config, _told(config, weights), _UNTOLD)
  return combine_saved(config, weights.config)


def combine_saved(
  config: ConfigDict, saved: ConfigDict, untold: tuple[str, ...] = ()
) -> ConfigDict:
  """As `combine`, of weights that were trained with a known configuration.

  Args:
    config: of a mode.
    saved: the configuration of the run.
    untold: fields that it does not tell, which `config` may set.

  Raises:
    UserError: a field was set that would have no effect.
  """
  own = (*_OWN, *_settings(config), *untold)
  ignored = differences(config, default(), own)
  if ignored:
    name = ignored[0].split(' ')[0]
    if name.startswith('config.attack.') and config.mode == 'study':
      raise UserError(
        f'{name} has no effect with config.study.name={config.study.name!r}, '
        'which attacks nothing; leave it out'
      )
    raise UserError(
      f'{name} has no effect with config.mode={config.mode!r}, where the model '
      "and the data are those of the checkpoint's own run; leave it out"
    )
  out = saved.copy_and_resolve_references()
  own = ('mode', 'seed', 'checkpoint', 'num_selected', config.mode, 'mesh')
  for name in (*own, *(['attack'] if attacks(config) else [])):
    out[name] = config[name]
  select(out, config.num_selected, 'config.num_selected')
  out.data.split = config.data.split or saved.data.eval_split
  out.data.name = config.data.name or saved.data.name
  out.data.dir = config.data.dir or saved.data.dir
  how = ('on_corrupt', 'on_unlabelled', 'threads', 'workers', 'prefetch')
  for name in (*how, 'cache_bytes'):
    out.data[name] = config.data[name]
  return out


def refuse_unchanged(config: ConfigDict, names: Iterable[str]) -> None:
  """Refuses fields that were set to their default where it stands for another.

  `combine` takes a field of the model or the data that is at its default for
  one that was left alone: what the saved run had counts, which may be another
  value than the one that was asked for.

  Args:
    config: of a mode.
    names: fields that were set and did not change, such as
      'config.model.compute_dtype'.

  Raises:
    UserError: one of them is not of this mode.
  """
  usual, found = flatten(default()), flatten(config)
  own = (*_OWN, *(name for name in found if name.startswith(_GROUPS)))
  for name in names:
    if name not in own and found[name] == usual[name]:
      way = 'leave it out'
      if name == 'config.model.router.selected':
        way = 'set config.num_selected'
      raise UserError(
        f'{name}={found[name]!r} has no effect with config.mode='
        f'{config.mode!r}: it is the default, which stands for what the '
        f"checkpoint's own run had; {way}"
      )


def _alone(config: ConfigDict) -> ConfigDict:
  """The configuration of a study that needs no checkpoint."""
  own = ('config.mode', 'config.seed', *_settings(config), *_MACHINE)
  # Empty in configs/study.py: as trained.
  own += tuple(
    f'config.data.{n}' for n in ('name', 'split') if not config.data[n]
  )
  if ignored := differences(config, default(), own):
    raise UserError(
      f'{ignored[0].split(" ")[0]} has no effect with config.study.name='
      f'{config.study.name!r}, which makes its own data and models; leave it '
      'out'
    )
  return config.copy_and_resolve_references()


def _settings(config: ConfigDict) -> tuple[str, ...]:
  if config.mode == 'attack':
    fields = flatten(config.attack, 'config.attack')
    return tuple(name for name in fields if name not in _OF_TRAINING)
  own = ('config.study.name', f'config.study.{config.study.name}.')
  return (*own, 'config.attack.') if attacks(config) else own


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
