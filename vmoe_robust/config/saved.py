"""Saved configurations: as JSON, with a version, and read again years later."""

import json

from vmoe_robust.config.fields import VERSION, ConfigDict, default
from vmoe_robust.errors import UserError

# What moved after a version: the old name of a field or of a group of fields,
# such as 'train.ema' or 'train', and the new one, or None if it is gone. A
# saved configuration is brought up to date one version after the other.
MOVED: dict[int, dict[str, str | None]] = {
  0: {'corrupt': 'study.corruptions', 'certify': 'study.certificates'},
}


def to_json(config: ConfigDict) -> str:
  """The configuration as JSON that `from_json` reads back."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
  """A configuration from `to_json` of this version or of an earlier one.

  Fields that it lacks take their defaults.

  Raises:
    UserError: it has a field that is not known, or is of a later version.
  """
  config = default()
  values = migrate(json.loads(text), MOVED)
  with config.ignore_type():  # of all groups; it walks through them all
    _merge(config, values, 'config')
  return config


def migrate(
  values: dict, moved: dict[int, dict[str, str | None]], current: int = VERSION
) -> dict:
  """Nested fields under the names that the current version has for them.

  Args:
    values: of a saved configuration; without a 'version' it is of version 0.
    moved: for each version what left its place after it: see `MOVED`.
    current: the version of the result.

  Raises:
    UserError: the version is no number, or a later one.
  """
  values = json.loads(json.dumps(values))
  version = values.pop('version', 0)
  if not isinstance(version, int) or version < 0:
    raise UserError(
      f'the saved configuration has version={version!r}, which is no version; '
      'restore it from a copy'
    )
  if version > current:
    raise UserError(
      f'the saved configuration has version={version}, and this program reads '
      f'versions up to {current}; install a newer vmoe_robust'
    )
  for step in range(version, current):
    for old, new in moved.get(step, {}).items():
      _move(values, old.split('.'), new.split('.') if new else None)
  return values | {'version': current}


def _move(values: dict, old: list[str], new: list[str] | None) -> None:
  top, (*groups, name) = values, old
  for group in groups:
    values = values.get(group, {})
  if name not in values:
    return
  value = values.pop(name)
  if new is None:
    return
  *groups, name = new
  for group in groups:
    top = top.setdefault(group, {})
  if isinstance(value, dict) and isinstance(top.get(name), dict):
    top[name] |= value
  else:
    top[name] = value


def _merge(config: ConfigDict, values: dict, prefix: str) -> None:
  for name, value in values.items():
    field = f'{prefix}.{name}'
    if name not in config:
      raise UserError(
        f'the saved configuration has a field {field!r} that is not known; it '
        'is that of another program or version'
      )
    is_group = isinstance(config[name], ConfigDict)
    if is_group != isinstance(value, dict):
      raise UserError(
        f'the saved configuration has {field}={value!r}, which is '
        f'{"no group of fields" if is_group else "no value"}; restore it from '
        'a copy'
      )
    if is_group:
      _merge(config[name], value, field)
    else:
      config[name] = tuple(value) if isinstance(value, list) else value
