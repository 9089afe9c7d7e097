"""Refusing ways to carry a run out that cannot work."""

from vmoe_robust.config.fields import VERSION, ConfigDict, eps_name
from vmoe_robust.config.limits import at_least, choose, positive, radius
from vmoe_robust.errors import UserError


def validate_machine(config: ConfigDict) -> None:
  """Refuses what decides how a run is carried out, and cannot work.

  Of modes that judge saved weights only the version counts: what else is here
  was of the training.

  Raises:
    UserError: names the field, its value and the way out.
  """
  _validate_version(config.version)
  if config.mode != 'train':
    return
  _validate_profile(config.train.profile_steps)
  _validate_save(config)
  _validate_monitor(config)


def _validate_version(version: object) -> None:
  if version != VERSION:
    raise UserError(
      f'config.version={version} is not {VERSION}, the version of the fields '
      'that this program has; leave it out'
    )


def _validate_profile(steps: tuple) -> None:
  if not steps:
    return
  whole = len(steps) == 2 and all(isinstance(step, int) for step in steps)
  if not whole or not 1 <= steps[0] <= steps[1]:
    raise UserError(
      f'config.train.profile_steps={steps} is not a first and a last step; use '
      'a pair such as (10, 12)'
    )


def _validate_save(config: ConfigDict) -> None:
  save = config.save
  positive('config.save.keep', save.keep)
  for name in ('every_steps', 'every_minutes', 'keep_every'):
    at_least(f'config.save.{name}', save[name], 0)
  choose('config.save.on_damage', save.on_damage, ('fall_back', 'error'))
  measured = ['', 'eval_accuracy', 'eval_loss']
  attacked = config.attack.eps if config.attack.every_steps else ()
  monitored = config.train.monitor.eps
  radii = (*attacked, monitored) if monitored else attacked
  measured += [f'robust_accuracy/{eps_name(eps)}' for eps in radii]
  choose('config.save.best', save.best, measured)
  if save.best and not config.data.validation:
    raise UserError(
      f'config.save.best={save.best!r} selects, and no part of the training '
      'data is held out for that; set config.data.validation, to 0.1 for '
      'example (what a run is judged on at its end must not select it)'
    )
  attacked = [f'robust_accuracy/{eps_name(eps)}' for eps in attacked]
  if save.best and save.best not in attacked and not config.eval.every_steps:
    raise UserError(
      f'config.save.best={save.best!r} is measured at the last step alone with '
      'config.eval.every_steps=0; set that, to 1000 for example'
    )


def _validate_monitor(config: ConfigDict) -> None:
  monitor = config.train.monitor
  choose('config.train.monitor.on_fall', monitor.on_fall, ('warn', 'stop'))
  for name in ('steps', 'examples'):
    positive(f'config.train.monitor.{name}', monitor[name])
  radius('config.train.monitor.eps', monitor.eps, config.attack.norm)
  if not 0 < monitor.max_fall <= 1:
    raise UserError(
      f'config.train.monitor.max_fall={monitor.max_fall} is a share of the '
      'images; use a number above 0 and at most 1, such as 0.2'
    )
  if monitor.eps and not config.data.validation:
    raise UserError(
      f'config.train.monitor.eps={monitor.eps} watches held-out images, and '
      'config.data.validation=0 holds none out; set that, to 0.1 for example'
    )
  attacked = config.attack.eps if config.attack.every_steps else ()
  if monitor.eps and eps_name(monitor.eps) in map(eps_name, attacked):
    raise UserError(
      f'config.train.monitor.eps={monitor.eps} is one of config.attack.eps, so '
      'that with config.attack.every_steps two attacks would measure '
      f'robust_accuracy/{eps_name(monitor.eps)}; set monitor.eps=0, or another '
      'radius'
    )
  if monitor.eps and config.train.loss != 'softmax':
    raise UserError(
      f'config.train.monitor.eps={monitor.eps} needs one label an image, but '
      f'config.train.loss={config.train.loss!r}; set it to 0'
    )
