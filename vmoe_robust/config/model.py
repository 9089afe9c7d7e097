"""Refusing models that cannot be built or trained."""

import math

from vmoe_robust.config.fields import ConfigDict, moe_blocks
from vmoe_robust.config.judging import DTYPES
from vmoe_robust.config.limits import (
  at_least,
  choose,
  divisors_text,
  numbers,
  positive,
  several,
)
from vmoe_robust.errors import UserError

ROUTERS = ('top_k', 'expert_choice', 'soft', 'hash', 'oracle')
GATES = ('softmax', 'sigmoid', 'uniform')
UNITS = ('token', 'image')
# Fields of the router that 'top_k' alone reads, and what they are without it.
TOP_K_ALONE = dict(
  gate='softmax', renormalize=False, unit='token', frozen=False, balance_rate=0
)
STEMS = ('patch', 'conv')
HEADS = ('token', 'gap', 'map', 'seqpool')
POSITIONS = ('learned', 'sincos')


def validate_model(config: ConfigDict) -> None:
  """Refuses a `config.model` that cannot be built or trained.

  Raises:
    UserError: names the field, its value and the way out.
  """
  model, size = config.model, config.data.image_size
  for name in ('patch', 'hidden', 'layers', 'heads', 'mlp'):
    positive(f'config.model.{name}', model[name])
  whole = ('experts', 'moe_every', 'moe_last', 'pre_logits')
  for name in (*whole, 'expert_mlp', 'shared_experts'):
    at_least(f'config.model.{name}', model[name], 0)
  choose('config.model.stem', model.stem, STEMS)
  choose('config.model.head', model.head, HEADS)
  choose('config.model.positions', model.positions, POSITIONS)
  choose('config.model.compute_dtype', model.compute_dtype, DTYPES)
  for name in ('mean', 'std', 'moe_blocks'):
    numbers(f'config.model.{name}', model[name])
  for name in ('mean', 'std'):
    if not model[name]:
      raise UserError(
        f'config.model.{name}=() has no number; use one for all channels, such '
        'as (0.5,), or one for each'
      )
  if not all(0 < std < math.inf for std in model.std):
    raise UserError(
      f'config.model.std={model.std} divides; use finite numbers above 0, such '
      "as (0.5,) or the data set's own"
    )
  if not all(map(math.isfinite, model.mean)):
    raise UserError(f'config.model.mean={model.mean} is not finite; use (0.5,)')
  for name in ('dropout', 'stochastic_depth'):
    if not 0 <= model[name] < 1:
      raise UserError(
        f'config.model.{name}={model[name]} is a probability; use 0 or more '
        'and less than 1'
      )
  if size % model.patch:
    raise UserError(
      f'config.data.image_size={size} is not divisible by '
      f'config.model.patch={model.patch}; use an image size of '
      f'{size // model.patch * model.patch or model.patch} or '
      f'{(size // model.patch + 1) * model.patch}'
    )
  if model.hidden % model.heads:
    raise UserError(
      f'config.model.hidden={model.hidden} is not divisible by '
      f'config.model.heads={model.heads}; use '
      f'{divisors_text(model.hidden)} heads'
    )
  if model.positions == 'sincos' and model.hidden % 4:
    raise UserError(
      f'config.model.hidden={model.hidden} must be divisible by 4 for '
      "config.model.positions='sincos'"
    )
  if not 0 <= model.layer_scale < math.inf:
    raise UserError(
      f'config.model.layer_scale={model.layer_scale} is no factor; use 0 (off) '
      'or a number above it, such as 0.1'
    )
  if model.stem == 'conv':
    _validate_conv_stem(model)
  if not model.experts:
    _validate_dense(model)
    return
  _validate_moe(model)
  _validate_router(model)
  if model.router.name == 'oracle':
    _validate_oracle(config)


def _validate_conv_stem(model: ConfigDict):
  if model.patch & (model.patch - 1):
    raise UserError(
      f'config.model.patch={model.patch} is no power of two, as the strides of '
      "config.model.stem='conv' make; use 2, 4, 8 or 16, or stem='patch'"
    )
  # Channels double from one convolution to the next, of which two are least.
  unit = max(model.patch // 2, 2)
  if model.hidden % unit:
    raise UserError(
      f'config.model.hidden={model.hidden} is not divisible by {unit}, which '
      f"config.model.stem='conv' needs for config.model.patch={model.patch}; "
      f'use {-(-model.hidden // unit) * unit}'
    )


def _validate_dense(model: ConfigDict):
  for name in ('expert_mlp', 'shared_experts'):
    if model[name]:
      raise UserError(
        f'config.model.{name}={model[name]} has no effect without experts; set '
        'config.model.experts, or leave it out'
      )


def _validate_moe(model: ConfigDict):
  ways = [n for n in ('moe_every', 'moe_last', 'moe_blocks') if model[n]]
  if len(ways) > 1:
    raise UserError(
      ' and '.join(f'config.model.{n}={model[n]}' for n in ways)
      + ' both say which blocks are sparse; set one of them'
    )
  if model.moe_blocks:
    several('config.model.moe_blocks', tuple(model.moe_blocks), '(1, 3)')
    if any(type(block) is not int for block in model.moe_blocks):
      raise UserError(
        f'config.model.moe_blocks={model.moe_blocks} are no numbers of blocks; '
        'use whole ones, such as (1, 3)'
      )
  if model.moe_last > model.layers // 2:
    raise UserError(
      f'config.model.moe_last={model.moe_last} is more than the odd blocks of '
      f'{model.layers}; use at most {model.layers // 2}'
    )
  blocks = moe_blocks(model)
  if not blocks or min(blocks) < 0 or max(blocks) >= model.layers:
    raise UserError(
      f'config.model.experts={model.experts} needs sparse blocks among the '
      f'{model.layers} there are, but they are {blocks}; set one of '
      'config.model.moe_every, .moe_last or .moe_blocks'
    )


def _validate_router(model: ConfigDict):
  router = model.router
  choose('config.model.router.name', router.name, ROUTERS)
  choose('config.model.router.gate', router.gate, GATES)
  choose('config.model.router.unit', router.unit, UNITS)
  positive('config.model.router.selected', router.selected)
  positive('config.model.router.group_images', router.group_images)
  positive('config.model.router.slots', router.slots)
  if not 0 < router.capacity_factor < math.inf:
    raise UserError(
      f'config.model.router.capacity_factor={router.capacity_factor} is no '
      "factor above 0; use 1.05, or experts='dropless' for room without limit"
    )
  for name in router:
    if name.endswith('_weight') or name in ('noise_std', 'balance_rate'):
      at_least(f'config.model.router.{name}', router[name], 0)
  if router.selected > model.experts:
    raise UserError(
      f'config.model.router.selected={router.selected} is more than '
      f'config.model.experts={model.experts}; use at most {model.experts}'
    )
  for name, usual in TOP_K_ALONE.items():
    if router.name != 'top_k' and router[name] != usual:
      raise UserError(
        f'config.model.router.{name}={router[name]!r} has no effect on '
        f"config.model.router.name={router.name!r}; leave it out or use 'top_k'"
      )
  _validate_gates(router)


def _validate_gates(router: ConfigDict):
  if router.renormalize and router.gate == 'uniform':
    raise UserError(
      'config.model.router.renormalize=True has no effect on '
      "config.model.router.gate='uniform', whose gates sum to one; leave it out"
    )
  for name in ('load_weight', 'gshard_weight'):
    if router.balance_rate and router[name]:
      raise UserError(
        f'config.model.router.{name}={router[name]} is of a selection by the '
        f'router alone, and config.model.router.balance_rate='
        f'{router.balance_rate} adds a bias to it; set {name}=0 (and '
        'importance_weight=0, since the bias does their work)'
      )


def _validate_oracle(config: ConfigDict):
  why = (
    "config.model.router.name='oracle', which is told the class of each image "
    'and so classifies none'
  )
  attack, best = config.attack, config.save.best
  if config.train.loss != 'softmax':
    raise UserError(
      f'config.train.loss={config.train.loss!r} has no one class an image for '
      "config.model.router.name='oracle'; use 'softmax'"
    )
  if config.mode == 'train' and (attack.at_end or attack.every_steps):
    raise UserError(
      f'config.attack.at_end={attack.at_end} with config.attack.every_steps='
      f'{attack.every_steps} attacks {why}; set at_end=False and every_steps=0'
    )
  if config.train.monitor.eps:
    raise UserError(
      f'config.train.monitor.eps={config.train.monitor.eps} attacks {why}; set '
      'it to 0'
    )
  if best:
    raise UserError(
      f'config.save.best={best!r} is not measured of {why}; leave it out'
    )
