"""Running other programs; what a user can mend is one line and exit code 1."""

import argparse
import collections
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import NoReturn

# Of what a program says to standard error, what is kept to explain a failure.
_KEPT_LINES = 60


class CommandError(Exception):
  """A program ended with another exit code than 0."""

  def __init__(self, command: list[str], code: int, stderr: str):
    super().__init__(f'{shlex.join(command)} ended with {code}')
    self.code, self.stderr = code, stderr

  def reason(self) -> str:
    """The line of standard error that says most."""
    lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if 'error' in line.lower()]
    return (errors or lines or [str(self)])[-1]


class Parser(argparse.ArgumentParser):
  """Refuses in one line."""

  def error(self, message: str) -> NoReturn:
    """Ends the program with the message, without the usage."""
    fail(f'{message}; {self.prog} --help lists the flags')


def fail(message: str) -> NoReturn:
  """Ends the program with a message."""
  sys.exit(f'error: {message}')


def say(message: str) -> None:
  """Tells what goes on, apart from what the programs print."""
  print(f'# {message}', flush=True)


def need(tool: str, install: str) -> None:
  """Ends the program if a tool is missing, saying how to install it."""
  if not shutil.which(tool):
    fail(f'{tool} is not installed, or not on PATH; {install}')


class Shell:
  """Runs commands."""

  def ask(self, command: list[str], given: str = '') -> str:
    """What a program prints, of which the user sees nothing.

    Args:
      command: program and arguments.
      given: what it reads from standard input.

    Raises:
      CommandError: the program failed.
    """
    done = subprocess.run(
      command, input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
      raise CommandError(command, done.returncode, done.stderr)
    return done.stdout

  def show(self, command: list[str]) -> None:
    """Runs a program whose output the user sees as it comes.

    Raises:
      CommandError: the program failed.
    """
    kept = collections.deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
      command, stderr=subprocess.PIPE, text=True
    ) as process:
      for line in process.stderr:
        sys.stderr.write(line)
        kept.append(line)
    if process.returncode:
      raise CommandError(command, process.returncode, ''.join(kept))


def split(argv: list[str]) -> tuple[list[str], list[str]]:
  """Our own arguments, and those after '--', which are the run's."""
  if '--' not in argv:
    return argv, []
  at = argv.index('--')
  return argv[:at], argv[at + 1 :]


def check_name(name: str, most: int) -> None:
  """Refuses a `--name` that the cloud would."""
  ends = name[:1].islower() and not name.endswith('-')
  if not (re.fullmatch(rf'[-a-z0-9]{{1,{most}}}', name) and ends):
    fail(
      f'--name={name} must be of a-z, 0-9 and -, begin with a letter, not end '
      f'with -, and have {most} of them at most, as in moe-b16'
    )


def check_paths(root, config: str, workdir: str, mount: str) -> str:
  """The config as machines have it, from the root of the working tree.

  Refuses a config that is not copied, and a workdir that is not shared.

  Args:
    root: of the working tree, a `pathlib.Path`.
    config: `--config`, relative to the root.
    workdir: `--workdir`, on the machines.
    mount: where these see the shared folder.
  """
  inside = (root / config).resolve()
  if not inside.is_file() or not inside.is_relative_to(root / 'configs'):
    fail(
      f'--config={config} is no file in configs/, which is what the machines '
      'get; try --config=configs/moe_b16.py'
    )
  if '://' in workdir:
    fail(
      f'--workdir={workdir}: logs are kept in a folder, not in a bucket; use '
      f'one that all machines share, --workdir={mount}/NAME'
    )
  if not os.path.normpath(workdir).startswith(f'{mount}/'):
    fail(
      f'--workdir={workdir} is not in the shared folder, so other machines '
      f'could not resume from it; use --workdir={mount}/NAME'
    )
  if inside.is_relative_to(root / 'configs' / 'experiments'):
    fail(
      f'--config={config} is of many runs; start its parts one by one, as '
      '`python -m vmoe_robust.experiment --config=CONFIG --list` says'
    )
  return inside.relative_to(root).as_posix()


def check_rest(arguments: list[str]) -> None:
  """Refuses arguments of the run which would win over our own."""
  for word in arguments:
    name = word.partition('=')[0]
    if name.replace('--', '-') in ('-config', '-workdir'):
      fail(f'{word} after --: give {name} before it')
