"""Refusing fields that would have no effect on a training run.

Only of training: the configuration of a run that was saved with such a field
serves to judge its weights all the same.
"""

from collections.abc import Iterator

from vmoe_robust.config.fields import ConfigDict, default, differences, flatten
from vmoe_robust.config.objective import idle_fields
from vmoe_robust.errors import UserError

_BALANCE = ('importance_weight', 'load_weight', 'gshard_weight')
_NO_SCORES = (*_BALANCE, 'z_weight', 'noise_std', 'batch_priority', 'slots')
# Fields of `config.model.router` that a router does not read. Here and below,
# fields are left out that a base configuration sets for whatever is chosen on
# the command line, such as 'selected', which 'soft' does not read either.
_ROUTER = {
  'top_k': ('slots',),
  'expert_choice': (*_BALANCE, 'noise_std', 'batch_priority', 'slots'),
  'soft': _NO_SCORES[:-1],
  'hash': _NO_SCORES,
  'oracle': _NO_SCORES,
}


def refuse_idle(config: ConfigDict) -> None:
  """Refuses what a training run would not use.

  A field is refused where it says something (not its default, not 0) and
  another one makes it idle.

  Raises:
    UserError: names the field, why it has no effect, and the way out.
  """
  usual, found = flatten(default()), flatten(config)
  for name, because, way in _idle(config):
    name = f'config.{name}'
    if found[name] and found[name] != usual[name]:
      raise UserError(
        f'{name}={found[name]!r} has no effect with {because}; {way}'
      )
  for message in _contradictions(config):
    raise UserError(message)
  own = tuple({n for n in found if not n.startswith('config.study.')})
  if studied := differences(config, default(), own):
    raise UserError(
      f"{studied[0].split(' (')[0]} has no effect with config.mode='train'; "
      'ask the study of the trained model, with --config=configs/study.py'
    )


def _idle(config: ConfigDict) -> Iterator[tuple[str, str, str]]:
  """Fields that are idle: the name, because of what, and the way out."""
  model, data, opt = config.model, config.data, config.train.optimizer
  router, leave = model.router, 'leave it out'
  usual = default().train.objective
  if model.experts:
    name = f'config.model.router.name={router.name!r}'
    for field in _ROUTER[router.name]:
      yield f'model.router.{field}', name, leave
    modes = [config[use].experts for use in ('train', 'eval', 'attack')]
    if 'capacity' not in modes:
      none = "config.train.experts='dropless', whose experts have no queues"
      yield 'model.router.batch_priority', none, leave
    if router.gate == 'uniform':
      field = "config.model.router.gate='uniform', whose gates are all alike"
      yield 'model.router.batch_priority', field, leave
  objective = config.train.objective
  name = f'config.train.objective.name={objective.name!r}'
  for field in idle_fields(objective):
    way = f'leave it out, set it to its default of {usual[field]!r}, or choose '
    yield f'train.objective.{field}', name, f'{way}another objective'
  if model.layers == 1:
    yield 'model.stochastic_depth', 'config.model.layers=1', leave
  crop = f'config.data.crop={data.crop!r}'
  if data.crop != 'inception':
    yield 'data.crop_min_area', crop, "use crop='inception', or leave it out"
  if data.crop != 'pad':
    yield 'data.pad', crop, "use crop='pad', or pad=0"
  name = f'config.train.optimizer.name={opt.name!r}'
  idle = {
    'adamw': ('momentum',),
    'sgd': ('b1', 'b2'),
    'adafactor': ('b1', 'b2'),
  }
  for field in idle[opt.name]:
    yield f'train.optimizer.{field}', name, leave
  if opt.schedule != 'rsqrt':
    schedule = f'config.train.optimizer.schedule={opt.schedule!r}'
    yield 'train.optimizer.rsqrt_timescale', schedule, leave


def _contradictions(config: ConfigDict) -> Iterator[str]:
  """What asks for something that cannot come."""
  router, train, save = config.model.router, config.train, config.save
  objective, monitor = train.objective, train.monitor
  if config.model.experts and router.name == 'top_k':
    if router.load_weight and not router.noise_std:
      yield (
        f'config.model.router.load_weight={router.load_weight} is of choices '
        'under noise, and config.model.router.noise_std=0 draws none; set '
        'load_weight=0 (importance_weight and gshard_weight balance without it)'
      )
    if router.renormalize and router.selected == 1:
      yield (
        'config.model.router.renormalize=True makes every gate 1 with '
        'config.model.router.selected=1, so that the router does not learn '
        "from the classes; use selected=2, or say so with gate='uniform'"
      )
  if config.data.crop == 'pad' and not config.data.pad:
    yield (
      "config.data.crop='pad' moves nothing with config.data.pad=0; set pad=4 "
      "for example, or crop='none'"
    )
  if objective.name in ('trades', 'advmoe') and not objective.beta:
    yield (
      f'config.train.objective.beta=0 leaves config.train.objective.name='
      f"{objective.name!r} nothing of its attack; use beta=6.0, or 'natural'"
    )
  if train.profile_steps and train.profile_steps[0] > train.steps:
    yield (
      f'config.train.profile_steps={train.profile_steps} never comes with '
      f'config.train.steps={train.steps}; use earlier steps'
    )
  if save.keep_every and (
    not save.every_steps or save.keep_every % save.every_steps
  ):
    yield (
      f'config.save.keep_every={save.keep_every} keeps steps that are saved, '
      f'and config.save.every_steps={save.every_steps} saves others; use a '
      'multiple of every_steps'
    )
  if monitor.on_fall == 'stop' and not monitor.eps:
    yield (
      "config.train.monitor.on_fall='stop' watches nothing with "
      'config.train.monitor.eps=0; set eps, or leave on_fall out'
    )
  if monitor.on_fall == 'stop' and not config.eval.every_steps:
    yield (
      "config.train.monitor.on_fall='stop' has nothing to stop with "
      'config.eval.every_steps=0, which measures at the last step alone; set '
      'that, to 100 for example'
    )
