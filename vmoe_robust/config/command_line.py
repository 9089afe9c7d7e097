"""What the programs share: one `--config` and short errors."""

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vmoe_robust.config.checks import require_fields
from vmoe_robust.config.fields import ConfigDict, default, flatten
from vmoe_robust.errors import UserError

# What Python says of text that is of another kind than a field.
_KINDS = {
  'literal for int': 'no whole number',
  'string to float': 'no number',
  'Non-boolean': 'neither True nor False',
}


def load(flag: flags.FlagHolder, argv: list[str]) -> ConfigDict:
  """The configuration that a flag names, with what the command line changes.

  Raises:
    UserError: there is none, or an argument is no flag.
  """
  if len(argv) > 1:
    raise UserError(f'{argv[1]!r} is no flag; write --config.FIELD=VALUE')
  logging.set_verbosity(logging.WARNING)
  if flag.value is None:
    raise UserError('--config names no file; try configs/digits_moe.py')
  try:
    copy = getattr(flag.value, 'copy_and_resolve_references', None)
    if copy is None:
      kind = type(flag.value).__name__
      raise UserError(f'--config: get_config() returns a {kind}, no ConfigDict')
    return copy()
  except OSError as error:  # it is read only now
    reason = str(error).splitlines()[-1].strip()
    raise UserError(
      f'--config cannot be loaded: {reason}{_file_like_it()}'
    ) from error


def load_run(flag: flags.FlagHolder, argv: list[str]) -> ConfigDict:
  """The same, of one run, looked at before any field is used.

  Raises:
    UserError: as of `load`, or it has other fields than a run has.
  """
  config = load(flag, argv)
  require_fields(config)
  return config


def unchanged() -> list[str]:
  """Fields that the command line sets to what the file has already."""
  given = config_flags.get_override_values(flags.FLAGS['config'])
  found = []
  for name, value in given.items():
    before = flags.FLAGS[f'config.{name}'].default
    if value == (tuple(before) if isinstance(before, list) else before):
      found.append(f'config.{name}')
  return found


def name() -> str:
  """The name of the file that `--config` names."""
  return Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem


def run(main: Callable[[list[str]], None], fields: Sequence[str] = ()) -> None:
  """A program; what the user can mend is one line and exit code 1.

  A run that Ctrl-C or SIGTERM stopped is one line and exit code 130, as shells
  have it. `fields` are those
  of its `--config`, where that is not of one run.
  """
  try:
    app.run(main, flags_parser=functools.partial(_parse, fields))
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt as stopped:
    line = str(stopped) or 'stopped; the same command goes on where it can'
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(line, file=sys.stderr, flush=True)
    sys.exit(130)


def _parse(fields, argv):
  try:
    return flags.FLAGS(argv)
  except SyntaxError as error:  # of the file
    raise UserError(
      f'--config: {error.filename}, line {error.lineno}: {error.msg}'
    ) from error
  except (AttributeError, KeyError) as error:  # of a field that is not there
    if str(error).endswith("has no attribute 'get_config'"):
      raise UserError(
        '--config names a file without get_config(), which returns the '
        'configuration; see configs/digits_moe.py'
      ) from error
    words = re.findall(r'[\w?]+', str(error).replace('\\n', ' '))
    # Of Python code, and no field.
    if not words or words[0] in ('module', 'FrozenConfigDict'):
      raise UserError(f'--config: {type(error).__name__}: {error}') from error
    hint = ' '.join(words[1:]) or _elsewhere(words[0], fields)
    raise UserError(
      f'no such field in --config: {words[0]!r}. {hint}'
    ) from error
  except (flags.Error, OSError, TypeError, ValueError) as error:
    raise UserError(_wrong_value(str(error)) or _last(str(error))) from error


def _last(said: str) -> str:
  """Of what a config file raised, whose traceback is in the text, the end."""
  first, *rest = said.strip().splitlines()
  if not rest:
    return first
  places = re.findall(r'File "(.*)", line (\d+)', said)
  where = f'{places[-1][0]}, line {places[-1][1]}: ' if places else ''
  return f'--config: {where}{rest[-1].strip()}'


def _file_like_it() -> str:
  path = Path(config_flags.get_config_filename(flags.FLAGS['config']))
  if path.exists():  # what it opens is not there
    return ''
  there = [file.name for file in path.parent.glob('*.py')]
  near = difflib.get_close_matches(path.name, there, 1)
  return f'; did you mean {path.parent / near[0]}' if near else ''


def _wrong_value(said: str) -> str:
  """What is to be written instead, where a value does not fit its field."""
  found = re.fullmatch(r'flag --(config\.[\w.]+)=(.*?): (.*)', said, re.DOTALL)
  if not found:
    return ''
  name, value, reason = found.groups()
  if 'as a ConfigDict' in reason:
    own = [
      field for field in flatten(default()) if field.startswith(f'{name}.')
    ]
    example = f'{name}.name' if f'{name}.name' in own else ', '.join(own[:3])
    return f'{name}={value}: that is a group; set a field of it, as {example}'
  for words, kind in _KINDS.items():
    if words in reason:
      usual = flatten(default()).get(name)
      example = '' if usual is None else f', such as {usual}'
      return f'{name}={value} is {kind}; write one{example}'
  return ''


def _elsewhere(name: str, fields: Sequence[str]) -> str:
  """Where a field of this name is, if it is not where it was looked for."""
  if fields:
    return (
      f'There are {", ".join(fields)}; what its runs change is written in the '
      'file itself'
    )
  found = [f for f in flatten(default()) if f.rpartition('.')[2] == name]
  found = [f for f in found if not f.startswith('config.study.')] or found
  if not found:
    return 'vmoe_robust/config/fields.py has them all'
  return f'It is a field of another group: {" or ".join(sorted(found))}'
