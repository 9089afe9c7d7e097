"""Refusing what cannot work, before anything is compiled."""

import difflib
import functools
import math

from vmoe_robust.config.fields import (
  ConfigDict,
  batch_size,
  default,
  flatten,
)
from vmoe_robust.config.idle import refuse_idle
from vmoe_robust.config.judging import (
  DTYPES,
  EXPERT_MODES,
  require_queries,
  require_routers_loss,
  validate_attack,
)
from vmoe_robust.config.limits import (
  at_least,
  between,
  choose,
  divisors_text,
  fits,
  positive,
)
from vmoe_robust.config.machine import validate_machine
from vmoe_robust.config.model import validate_model
from vmoe_robust.config.objective import validate_objective
from vmoe_robust.config.studies import (
  attacks,
  needs_checkpoint,
  validate_its_attack,
  validate_study,
)
from vmoe_robust.errors import UserError

MODES = ('train', 'attack', 'study')
REMATS = ('', 'dots', 'blocks')
LOSSES = ('softmax', 'sigmoid')
OPTIMIZERS = ('adamw', 'sgd', 'adafactor')
SCHEDULES = ('cosine', 'linear', 'rsqrt', 'constant')
CROPS = ('none', 'pad', 'inception')


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
  """Sizes of the axes (data, expert, model) on `devices` devices.

  Raises:
    UserError: the axes' product is not the number of devices.
  """
  mesh = config.mesh
  model = positive('config.mesh.model', mesh.model)
  if devices % model:
    raise UserError(
      f'config.mesh.model={model} does not divide the {devices} devices; '
      f'use {divisors_text(devices)}'
    )
  rest = devices // model
  data, expert = mesh.data, mesh.expert
  if expert == -1:
    free = rest if data == -1 else rest // max(data, 1)
    expert = math.gcd(config.model.experts, free) if config.model.experts else 1
  positive('config.mesh.expert', expert)
  data = rest // expert if data == -1 else positive('config.mesh.data', data)
  if data * expert * model != devices:
    raise UserError(
      f'config.mesh.data={mesh.data} x config.mesh.expert={mesh.expert} x '
      f'config.mesh.model={mesh.model} do not make the {devices} devices '
      'there are; set config.mesh.data=-1 and an expert axis that divides '
      f'{rest}'
    )
  return data, expert, model


def require_fields(config: ConfigDict) -> None:
  """Refuses what has not the fields of `default()`, and these alone.

  A config file may add fields in silence, which a command line cannot.

  Raises:
    UserError: names the field, and one that is like it.
  """
  if 'mode' not in config:
    way = (
      'is of many runs; start it by `python -m vmoe_robust.experiment`'
      if 'runs' in config
      else 'is of no run; a config file changes config.default(), as '
      'configs/digits_moe.py does'
    )
    raise UserError(f'--config {way}')
  known, found = _fields(), flatten(config)
  for name in found:
    if name not in known:
      near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
      hint = f', did you mean {near[0]}' if near else ''
      raise UserError(
        f'{name}={found[name]!r} is no field{hint}; '
        'vmoe_robust/config/fields.py has them all'
      )
  for name in sorted(known - found.keys()):
    raise UserError(
      f'{name} is missing; a config file changes config.default(), which has '
      'all fields'
    )


@functools.cache
def _fields() -> frozenset[str]:
  return frozenset(flatten(default()))


def validate(config: ConfigDict, devices: int) -> None:
  """Refuses a configuration that cannot work on `devices` devices.

  Only what the mode reads is looked at: the rest of an attack's or a study's is
  that of the run that trained the weights, perhaps by an older version.

  Raises:
    UserError: names the field, its value and the way out.
  """
  require_fields(config)
  for name, value in flatten(config).items():
    fits(name, value)
  choose('config.mode', config.mode, MODES)
  if not (type(config.seed) is int and 0 <= config.seed < 2**32):
    raise UserError(
      f'config.seed={config.seed!r} is no whole number from 0 to 2**32 - 1; '
      'use one, such as 0'
    )
  _validate_start(config)
  _validate_data(config.data)
  validate_model(config)
  if config.mode == 'train':
    _validate_train(config)
    validate_objective(config)
  if attacks(config):
    validate_attack(config.attack)
    if weight := config.attack.auxiliary_weight:
      field = f'config.attack.auxiliary_weight={weight}'
      require_routers_loss(config.model, field)
  validate_machine(config)
  if config.mode != 'study':
    require_queries(config.attack)
  if config.mode == 'train':
    refuse_idle(config)
  if config.mode == 'study':
    _validate_question(config)
  validate_mesh(config, devices)
  data, expert, _ = mesh_shape(config, devices)
  uses = (config.mode,) if needs_checkpoint(config) else ()
  if config.mode == 'train':
    attacked = config.attack.at_end or config.attack.every_steps
    uses = ('train', 'eval', *(['attack'] if attacked else []))
  for use in uses:
    _validate_batch(config, use, data * expert)


def _validate_question(config: ConfigDict):
  validate_study(config.study)
  validate_its_attack(config)
  if attacks(config) and 0 in config.attack.eps:
    raise UserError(
      f'config.attack.eps={config.attack.eps} has a radius of 0, and a study '
      'judges clean images anyway; leave 0 out'
    )


def _validate_start(config: ConfigDict):
  at_least('config.num_selected', config.num_selected, 0)
  if not 0 <= config.init_from_noise < math.inf:
    raise UserError(
      f'config.init_from_noise={config.init_from_noise} is no deviation; use 0 '
      'or more, such as 0.01'
    )
  way = 'name the weights in config.init_from, or leave it out'
  idle = [] if config.init_from else ['init_from_except', 'init_from_noise']
  if config.mode == 'train':
    idle += ['checkpoint', 'num_selected']
  for name in idle:
    if name == 'num_selected':
      way = 'set config.model.router.selected, or leave it out'
    if config[name]:
      raise UserError(
        f'config.{name}={config[name]!r} has no effect on config.mode='
        f'{config.mode!r}; {way}'
      )


def _validate_data(data: ConfigDict):
  choose('config.data.crop', data.crop, CROPS)
  for name in ('on_corrupt', 'on_unlabelled'):
    choose(f'config.data.{name}', data[name], ('error', 'skip'))
  if not 0 <= data.validation < 1:
    raise UserError(
      f'config.data.validation={data.validation} is the share of the training '
      'examples that is held out; use a number from 0 to below 1, such as 0.1'
    )
  positive('config.data.image_size', data.image_size)
  positive('config.data.threads', data.threads)
  positive('config.data.prefetch', data.prefetch)
  for name in ('pad', 'workers', 'randaugment_layers', 'mixup', 'resize'):
    at_least(f'config.data.{name}', data[name], 0)
  at_least('config.data.cache_bytes', data.cache_bytes, 0)
  between('config.data.crop_min_area', data.crop_min_area, 0, 1)
  between(
    'config.data.randaugment_magnitude', data.randaugment_magnitude, 0, 30
  )
  if data.resize and data.resize < data.image_size:
    raise UserError(
      f'config.data.resize={data.resize} is smaller than '
      f'config.data.image_size={data.image_size}, which is cropped from it; '
      f'use {data.image_size} or more, or 0'
    )


def _validate_train(config: ConfigDict):
  train, opt = config.train, config.train.optimizer
  for name in ('steps', 'batch_size', 'accumulate', 'log_every'):
    positive(f'config.train.{name}', train[name])
  choose('config.train.loss', train.loss, LOSSES)
  choose('config.train.remat', train.remat, REMATS)
  choose('config.train.experts', train.experts, EXPERT_MODES)
  choose('config.eval.experts', config.eval.experts, EXPERT_MODES)
  choose('config.train.optimizer.name', opt.name, OPTIMIZERS)
  choose('config.train.optimizer.schedule', opt.schedule, SCHEDULES)
  choose('config.train.optimizer.moment_dtype', opt.moment_dtype, DTYPES)
  for name in ('learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm'):
    at_least(f'config.train.optimizer.{name}', opt[name], 0)
  for name in ('b1', 'b2', 'momentum'):
    if not 0 <= opt[name] < 1:
      raise UserError(
        f'config.train.optimizer.{name}={opt[name]} is a decay; use 0 or more '
        'and less than 1'
      )
  positive('config.train.optimizer.rsqrt_timescale', opt.rsqrt_timescale)
  if not 0 <= train.ema < 1:
    raise UserError(
      f'config.train.ema={train.ema} is a decay; use 0 (off) or a number '
      'below 1 such as 0.999'
    )
  if not 0 <= train.label_smoothing < 1:
    raise UserError(
      f'config.train.label_smoothing={train.label_smoothing} is the share that '
      'all classes have alike; use 0 or more and less than 1, such as 0.1'
    )
  for name in ('every_steps', 'batch_size'):
    at_least(f'config.eval.{name}', config.eval[name], 0)


def validate_mesh(config: ConfigDict, devices: int) -> None:
  """Refuses a `config.mesh` over which the model cannot be spread.

  Raises:
    UserError: names the field, its value and the way out.
  """
  expert, experts = config.mesh.expert, config.model.experts
  if expert > 0 and experts % expert:
    raise UserError(
      f'config.mesh.expert={expert} does not divide config.model.experts='
      f'{experts}; use {divisors_text(experts)}, or -1 for the most that fit'
    )
  model = mesh_shape(config, devices)[2]
  for name in ('heads', 'mlp', 'expert_mlp'):
    if config.model[name] % model:
      raise UserError(
        f'config.model.{name}={config.model[name]} is not divisible by '
        f'config.mesh.model={model}; use a mesh axis of '
        f'{divisors_text(config.model[name])}'
      )


def _validate_batch(config: ConfigDict, use: str, unit: int):
  why, router = f'the {unit} devices that share the batch', config.model.router
  accumulate, whole = config.train.accumulate, 1
  if use == 'train' and accumulate > 1:
    unit *= accumulate
    why += f' x config.train.accumulate={accumulate}'
    # Microbatches must hold the groups that the whole batch has.
    if config.model.experts and router.name != 'soft':
      whole = router.group_images
      unit *= whole
      why += f' x config.model.router.group_images={router.group_images}'
  shared = use in ('eval', 'attack') and config[use].experts == 'capacity'
  if shared and config.model.experts and router.name != 'soft':
    unit = math.lcm(unit, router.group_images)
    why += (
      f', and whole groups of config.model.router.group_images='
      f'{router.group_images} that share capacity'
    )
  # Groups of an even number hold whole pairs already.
  if use == 'train' and config.data.mixup and whole % 2:
    unit, why = 2 * unit, why + ' x 2 images that config.data.mixup pairs'
  size = batch_size(config, use)
  field = f'study.{config.study.name}' if use == 'study' else use
  inherits = use in ('eval', 'attack') and not config[use].batch_size
  taken = ' (not set: that of evaluation or of training)' if inherits else ''
  if size % unit:
    low = size // unit * unit
    ways = ' or '.join(str(n) for n in (low, low + unit) if n)
    raise UserError(
      f'config.{field}.batch_size={size}{taken} is not divisible by {unit}, '
      f'{why}; use {ways}'
    )
