"""Refusing what cannot work, before anything is compiled."""

import difflib
import math
import re
from collections.abc import Iterable

from vmoe_robust.config.fields import (
  CORRUPTIONS,
  ConfigDict,
  UserError,
  batch_size,
  eps_name,
  moe_blocks,
)

MODES = ('train', 'attack', 'corrupt', 'certify')
ROUTERS = ('top_k', 'expert_choice', 'soft')
HEADS = ('token', 'gap', 'map')
POSITIONS = ('learned', 'sincos')
EXPERT_MODES = ('capacity', 'dropless')
REMATS = ('', 'dots', 'blocks')
LOSSES = ('softmax', 'sigmoid')
OPTIMIZERS = ('adamw', 'sgd', 'adafactor')
SCHEDULES = ('cosine', 'linear', 'rsqrt', 'constant')
DTYPES = ('float32', 'bfloat16')
# Attacks on every image to the end, with all the settings of `config.attack`;
# the others are parts of ensembles, which images leave as they fall.
WHOLE_ATTACKS = ('pgd', 'paper')
ATTACKS = WHOLE_ATTACKS + (
  *('autoattack', 'autoattack_standard', 'autoattack_plus', 'autoattack_rand'),
  *('fgsm', 'mim', 'apgd_ce', 'apgd_dlr', 'apgd_t', 'fab', 'fab_t', 'square'),
)
_VERSIONS = tuple(name for name in ATTACKS if name.startswith('autoattack'))
NORMS = ('linf', 'l2', 'l1')
TARGETS = ('', 'runner_up', 'least_likely', 'random')
CROPS = ('none', 'pad', 'inception')


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
  """Sizes of the axes (data, expert, model) on `devices` devices.

  Raises:
    UserError: the axes' product is not the number of devices.
  """
  mesh = config.mesh
  model = _positive('config.mesh.model', mesh.model)
  if devices % model:
    raise UserError(
      f'config.mesh.model={model} does not divide the {devices} devices; '
      f'use {_divisors_text(devices)}'
    )
  rest = devices // model
  data, expert = mesh.data, mesh.expert
  if expert == -1:
    free = rest if data == -1 else rest // max(data, 1)
    expert = math.gcd(config.model.experts, free) if config.model.experts else 1
  _positive('config.mesh.expert', expert)
  data = rest // expert if data == -1 else _positive('config.mesh.data', data)
  if data * expert * model != devices:
    raise UserError(
      f'config.mesh.data={mesh.data} x config.mesh.expert={mesh.expert} x '
      f'config.mesh.model={mesh.model} do not make the {devices} devices '
      'there are; set config.mesh.data=-1 and an expert axis that divides '
      f'{rest}'
    )
  return data, expert, model


def validate(config: ConfigDict, devices: int):
  """Refuses a configuration that cannot work on `devices` devices.

  Raises:
    UserError: names the field, its value and the way out.
  """
  choose('config.mode', config.mode, MODES)
  _at_least('config.num_selected', config.num_selected, 0)
  _at_least('config.init_from_noise', config.init_from_noise, 0)
  _validate_data(config.data)
  _validate_model(config)
  _validate_train(config)
  validate_attack(config.attack)
  _validate_save(config)
  _validate_corrupt(config.corrupt)
  _validate_certify(config.certify)
  validate_mesh(config, devices)
  data, expert, _ = mesh_shape(config, devices)
  uses = ('train', 'eval', 'attack')
  for use in uses if config.mode == 'train' else (config.mode,):
    _validate_batch(config, use, data * expert)


def _validate_data(data: ConfigDict):
  choose('config.data.crop', data.crop, CROPS)
  choose('config.data.on_corrupt', data.on_corrupt, ('error', 'skip'))
  _positive('config.data.image_size', data.image_size)
  _positive('config.data.threads', data.threads)
  _positive('config.data.prefetch', data.prefetch)
  for name in ('pad', 'workers', 'randaugment_layers', 'mixup', 'resize'):
    _at_least(f'config.data.{name}', data[name], 0)
  _between('config.data.crop_min_area', data.crop_min_area, 0, 1)
  _between(
    'config.data.randaugment_magnitude', data.randaugment_magnitude, 0, 30
  )
  if data.resize and data.resize < data.image_size:
    raise UserError(
      f'config.data.resize={data.resize} is smaller than '
      f'config.data.image_size={data.image_size}, which is cropped from it; '
      f'use {data.image_size} or more, or 0'
    )


def _validate_model(config: ConfigDict):
  model, size = config.model, config.data.image_size
  for name in ('patch', 'hidden', 'layers', 'heads', 'mlp'):
    _positive(f'config.model.{name}', model[name])
  for name in ('experts', 'moe_every', 'moe_last', 'pre_logits'):
    _at_least(f'config.model.{name}', model[name], 0)
  choose('config.model.head', model.head, HEADS)
  choose('config.model.positions', model.positions, POSITIONS)
  choose('config.model.compute_dtype', model.compute_dtype, DTYPES)
  for name in ('mean', 'std', 'moe_blocks'):
    _numbers(f'config.model.{name}', model[name])
  if 0 in model.std:
    raise UserError(
      f'config.model.std={model.std} divides by 0; use (0.5,) or the data '
      "set's own"
    )
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
      f'{_divisors_text(model.hidden)} heads'
    )
  if model.positions == 'sincos' and model.hidden % 4:
    raise UserError(
      f'config.model.hidden={model.hidden} must be divisible by 4 for '
      "config.model.positions='sincos'"
    )
  if model.experts:
    _validate_moe(model)


def _validate_moe(model: ConfigDict):
  router = model.router
  choose('config.model.router.name', router.name, ROUTERS)
  _positive('config.model.router.selected', router.selected)
  _positive('config.model.router.group_images', router.group_images)
  _positive('config.model.router.slots', router.slots)
  if not router.capacity_factor > 0:
    raise UserError(
      f'config.model.router.capacity_factor={router.capacity_factor} leaves '
      'no room for tokens; use 1.05'
    )
  for name in router:
    if name.endswith('_weight') or name == 'noise_std':
      _at_least(f'config.model.router.{name}', router[name], 0)
  if router.selected > model.experts:
    raise UserError(
      f'config.model.router.selected={router.selected} is more than '
      f'config.model.experts={model.experts}; use at most {model.experts}'
    )
  ways = [n for n in ('moe_every', 'moe_last', 'moe_blocks') if model[n]]
  if len(ways) > 1:
    raise UserError(
      ' and '.join(f'config.model.{n}={model[n]}' for n in ways)
      + ' both say which blocks are sparse; set one of them'
    )
  blocks = moe_blocks(model)
  if not blocks or min(blocks) < 0 or max(blocks) >= model.layers:
    raise UserError(
      f'config.model.experts={model.experts} needs sparse blocks among the '
      f'{model.layers} there are, but they are {blocks}; set one of '
      'config.model.moe_every, .moe_last or .moe_blocks'
    )


def _validate_train(config: ConfigDict):
  train, opt = config.train, config.train.optimizer
  for name in ('steps', 'batch_size', 'accumulate', 'log_every'):
    _positive(f'config.train.{name}', train[name])
  choose('config.train.loss', train.loss, LOSSES)
  choose('config.train.remat', train.remat, REMATS)
  choose('config.train.experts', train.experts, EXPERT_MODES)
  choose('config.eval.experts', config.eval.experts, EXPERT_MODES)
  choose('config.train.optimizer.name', opt.name, OPTIMIZERS)
  choose('config.train.optimizer.schedule', opt.schedule, SCHEDULES)
  choose('config.train.optimizer.moment_dtype', opt.moment_dtype, DTYPES)
  for name in ('learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm'):
    _at_least(f'config.train.optimizer.{name}', opt[name], 0)
  for name in ('b1', 'b2', 'momentum'):
    if not 0 <= opt[name] < 1:
      raise UserError(
        f'config.train.optimizer.{name}={opt[name]} is a decay; use 0 or more '
        'and less than 1'
      )
  _positive('config.train.optimizer.rsqrt_timescale', opt.rsqrt_timescale)
  if not 0 <= train.ema < 1:
    raise UserError(
      f'config.train.ema={train.ema} is a decay; use 0 (off) or a number '
      'below 1 such as 0.999'
    )
  _between('config.train.label_smoothing', train.label_smoothing, 0, 1)
  for name in ('every_steps', 'batch_size'):
    _at_least(f'config.eval.{name}', config.eval[name], 0)


def _validate_save(config: ConfigDict):
  save = config.save
  _positive('config.save.keep', save.keep)
  for name in ('every_steps', 'every_minutes', 'keep_every'):
    _at_least(f'config.save.{name}', save[name], 0)
  choose('config.save.on_damage', save.on_damage, ('fall_back', 'error'))
  measured = ['', 'eval_accuracy', 'eval_loss']
  if config.attack.every_steps:
    measured += [f'robust_accuracy/{eps_name(e)}' for e in config.attack.eps]
  choose('config.save.best', save.best, measured)


def validate_attack(attack: ConfigDict):
  """Refuses a `config.attack` that makes no sense.

  Raises:
    UserError: names the field, its value and the way out.
  """
  parts = attack.name.split('+')
  for part in parts:
    choose('config.attack.name', part, ATTACKS)
  if len(parts) > 1 and {'paper', *_VERSIONS} & {*parts}:
    raise UserError(
      f'config.attack.name={attack.name!r} has a part that stands alone; join '
      "single attacks, as in 'apgd_ce+square'"
    )
  choose('config.attack.norm', attack.norm, NORMS)
  choose('config.attack.target', attack.target, TARGETS)
  choose('config.attack.experts', attack.experts, EXPERT_MODES)
  for name in ('steps', 'restarts'):
    _positive(f'config.attack.{name}', attack[name])
  for name in ('step_size', 'momentum', 'batch_size', 'every_steps'):
    _at_least(f'config.attack.{name}', attack[name], 0)
  if isinstance(attack.eps, str) or not attack.eps:
    raise UserError(
      f'config.attack.eps={attack.eps!r} is no sweep; use a tuple such as '
      '(0.01, 0.02)'
    )
  _numbers('config.attack.eps', attack.eps)
  for eps in attack.eps:
    if not 0 <= eps <= 1 and attack.norm == 'linf':
      raise UserError(
        f'config.attack.eps={eps} is outside [0, 1]; pixels are in [0, 1], so '
        'write 8/255 as 0.0314'
      )
    if not 0 <= eps < math.inf:
      raise UserError(
        f'config.attack.eps={eps} is no radius; use 0 or more, such as 0.5'
      )
  if len({eps_name(eps) for eps in attack.eps}) < len(attack.eps):
    raise UserError(
      f'config.attack.eps={attack.eps} has a radius twice; leave one out'
    )
  if attack.restarts > 1 and not attack.random_start:
    raise UserError(
      f'config.attack.restarts={attack.restarts} would all be the same with '
      'config.attack.random_start=False; use restarts=1 or random_start=True'
    )
  if attack.compute_dtype:
    choose('config.attack.compute_dtype', attack.compute_dtype, DTYPES)
  _positive('config.attack.queries', attack.queries)
  if attack.name == 'paper':
    _fixed(attack, dict(norm='linf', step_size=0.0, restarts=1, momentum=0.0))
  if attack.name not in WHOLE_ATTACKS:
    # Images come and go: a batch they share slots in is no group.
    _fixed(attack, dict(experts='dropless', step_size=0.0, momentum=0.0))
    _fixed(attack, dict(random_start=True, target='', class_weight=1.0))
    _fixed(attack, dict(auxiliary_weight=0.0))
    if 'square' in parts and attack.norm == 'l1':
      raise UserError(
        f"config.attack.norm='l1' does not fit config.attack.name="
        f'{attack.name!r}, for square has no l1; leave it out'
      )
  elif attack.compute_dtype:
    _fixed(attack, dict(compute_dtype=''))


def _fixed(attack: ConfigDict, fields: dict):
  for name, value in fields.items():
    if attack[name] != value:
      raise UserError(
        f'config.attack.{name}={attack[name]!r} does not fit '
        f'config.attack.name={attack.name!r}, which has {value!r}; use that, '
        "or config.attack.name='pgd'"
      )


def _validate_corrupt(corrupt: ConfigDict):
  names, severities = 'config.corrupt.names', 'config.corrupt.severities'
  _several(names, corrupt.names, "('fog', 'snow')")
  for name in corrupt.names:
    choose(names, name, CORRUPTIONS)
  _several(severities, corrupt.severities, '(1, 3, 5)')
  for severity in corrupt.severities:
    if severity not in (1, 2, 3, 4, 5):
      raise UserError(
        f'{severities}={severity!r} is not one of 1, 2, 3, 4 and 5; use those'
      )
  _at_least('config.corrupt.batch_size', corrupt.batch_size, 0)


def _validate_certify(certify: ConfigDict):
  for name in ('n0', 'n', 'every'):
    _positive(f'config.certify.{name}', certify[name])
  _at_least('config.certify.batch_size', certify.batch_size, 0)
  if not 0 < certify.sigma < math.inf:
    raise UserError(
      f'config.certify.sigma={certify.sigma} is no noise; use a number above '
      '0, such as 0.25'
    )
  if not 0 < certify.alpha < 1:
    raise UserError(
      f'config.certify.alpha={certify.alpha} is the probability of a false '
      'certificate; use a number between 0 and 1, such as 0.001'
    )
  # Even if all n draws agree, the lower bound is alpha^(1/n).
  if certify.alpha ** (1 / certify.n) <= 0.5:
    least = math.floor(-math.log2(certify.alpha)) + 1
    raise UserError(
      f'config.certify.n={certify.n} can certify nothing at '
      f'config.certify.alpha={certify.alpha}; use {least} or more, such as '
      '10000'
    )
  _several('config.certify.radii', certify.radii, '(0.0, 0.5)')
  _numbers('config.certify.radii', certify.radii)
  for radius in certify.radii:
    if not 0 <= radius < math.inf:
      raise UserError(
        f'config.certify.radii={radius} is no radius; use 0 or more, such as '
        '0.5'
      )


def validate_mesh(config: ConfigDict, devices: int):
  """Refuses a `config.mesh` over which the model cannot be spread.

  Raises:
    UserError: names the field, its value and the way out.
  """
  expert, experts = config.mesh.expert, config.model.experts
  if expert > 0 and experts % expert:
    low = experts // expert * expert
    ways = ' or '.join(str(n) for n in (low, low + expert) if n)
    raise UserError(
      f'config.model.experts={experts} is not divisible by '
      f'config.mesh.expert={expert}; use {ways}'
    )
  model = mesh_shape(config, devices)[2]
  for name in ('heads', 'mlp'):
    if config.model[name] % model:
      raise UserError(
        f'config.model.{name}={config.model[name]} is not divisible by '
        f'config.mesh.model={model}; use a mesh axis of '
        f'{_divisors_text(config.model[name])}'
      )


def _validate_batch(config: ConfigDict, use: str, unit: int):
  why, router = f'the {unit} devices that share the batch', config.model.router
  accumulate = config.train.accumulate
  if use == 'train' and accumulate > 1:
    unit *= accumulate
    why += f' x config.train.accumulate={accumulate}'
    # Microbatches must hold the groups that the whole batch has.
    if config.model.experts and router.name != 'soft':
      unit *= router.group_images
      why += f' x config.model.router.group_images={router.group_images}'
  if use == 'train' and config.data.mixup:
    unit, why = 2 * unit, why + ' x 2 images that config.data.mixup pairs'
  size = batch_size(config, use)
  if size % unit:
    low = size // unit * unit
    ways = ' or '.join(str(n) for n in (low, low + unit) if n)
    raise UserError(
      f'config.{use}.batch_size={size} is not divisible by {unit}, {why}; '
      f'use {ways}'
    )


def choose(field: str, value: str, choices: Iterable[str]) -> str:
  """Returns `value` if it is one of `choices`.

  Raises:
    UserError: it is not; the nearest is named.
  """
  choices = list(choices)
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, 1, cutoff=0.5)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise UserError(
      f'{field}={value!r} is not known{hint}; use one of '
      + ', '.join(repr(c) for c in choices)
    )
  return value


def _several(field: str, values: Iterable, example: str):
  """Refuses text, nothing, and anything twice."""
  if isinstance(values, str) or not values:
    raise UserError(
      f'{field}={values!r} is no tuple of values; use one such as {example}'
    )
  if len(set(values)) < len(values):
    raise UserError(f'{field}={values} has a value twice; leave one out')


def _numbers(field: str, values: Iterable):
  for value in values:
    if not isinstance(value, int | float):
      top, _, bottom = str(value).partition('/')
      hint = 'a number'
      if top.strip().isdigit() and bottom.strip().isdigit() and int(bottom):
        hint = f'{int(top) / int(bottom):.6g}'
      raise UserError(f'{field}={value!r} is not a number; write {hint}')


def _positive(field: str, value: int) -> int:
  if value < 1:
    raise UserError(f'{field}={value} must be 1 or more')
  return value


def _at_least(field: str, value: float, least: float):
  if not value >= least:
    raise UserError(f'{field}={value} must be {least} or more')


def _between(field: str, value: float, low: float, high: float):
  if not low <= value <= high:
    raise UserError(f'{field}={value} must be between {low} and {high}')


def _divisors_text(n: int) -> str:
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  shown = divisors if len(divisors) < 9 else divisors[:8]
  return re.sub(r', (\d+)$', r' or \1', ', '.join(map(str, shown)))
