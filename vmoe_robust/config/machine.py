"""Refusing ways to carry a run out that cannot work."""

from vmoe_robust.config.fields import VERSION, ConfigDict, eps_name
from vmoe_robust.config.limits import at_least, choose, positive
from vmoe_robust.errors import UserError


def validate_machine(config: ConfigDict) -> None:
  """Refuses what decides how a run is carried out, and cannot work.

  Raises:
    UserError: names the field, its value and the way out.
  """
  _validate_version(config.version)
  _validate_profile(config.train.profile_steps)
  _validate_save(config)


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
  if config.attack.every_steps:
    measured += [f'robust_accuracy/{eps_name(e)}' for e in config.attack.eps]
  choose('config.save.best', save.best, measured)
  if save.best.startswith('eval_') and not config.eval.every_steps:
    raise UserError(
      f'config.save.best={save.best!r} is measured at the last step alone with '
      'config.eval.every_steps=0; set that, to 1000 for example'
    )
