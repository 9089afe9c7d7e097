"""The parts of an experiment: ordinary runs, each with its own folder."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping

from ml_collections import ConfigDict

from vmoe_robust.config import (
  UserError,
  choose,
  default,
  flatten,
  needs_checkpoint,
  validate,
)
from vmoe_robust.evaluate.combine import combine_saved, refuse_unchanged
from vmoe_robust.experiment.description import checked
from vmoe_robust.files import local_path

# What each group of the description is, as config.mode has it.
MODES = {'runs': 'train', 'attacks': 'attack', 'studies': 'study'}


@dataclasses.dataclass(frozen=True)
class Part:
  """One run of `vmoe_robust.main`.

  Attributes:
    number: its place, from 1; what it needs comes before it.
    name: of its folder in the experiment's, with slashes.
    mode: 'train', 'attack' or 'study'.
    run: which of `config.runs` it trains or judges.
    asked: the name of the attack or the study; '' of a training.
    seed: of the training.
    base: the config file.
    config: what it is to do.
    folder: its work directory.
    needs: the part that must be finished before, or None.
    stage: how many parts must be finished one after the other before it.
  """

  number: int
  name: str
  mode: str
  run: str
  asked: str
  seed: int
  base: str
  config: ConfigDict
  folder: pathlib.Path
  needs: str | None
  stage: int

  def arguments(self) -> list[str]:
    """Of `python -m vmoe_robust.main`, as a person would give them."""
    before, wanted = flatten(load_base(self.base, self.mode)), self.config
    changes = [
      f'--{name}={value}'
      for name, value in flatten(wanted).items()
      if before[name] != value
    ]
    return [f'--config={self.base}', f'--workdir={self.folder}', *changes]

  def command(self) -> list[str]:
    """The program and its arguments."""
    return [sys.executable, '-m', 'vmoe_robust.main', *self.arguments()]

  def shown(self) -> str:
    """The command as text for a shell."""
    return shlex.join(['python', *self.command()[1:]])


def parts(config: ConfigDict, workdir: str | os.PathLike) -> list[Part]:
  """All parts, those that need nothing first, each with its number.

  Raises:
    UserError: the description or what becomes of a base config is wrong.
  """
  config, workdir = checked(config), local_path(workdir, '--workdir')
  trained: dict[str, Part] = {}
  for run in _in_order(config.runs):
    for seed in config.seeds:
      part = _training(config, run, seed, workdir, trained)
      trained[part.name] = part
  found = list(trained.values())
  for group in ('attacks', 'studies'):
    for entry in config[group]:
      for training in trained.values():
        if not entry['of'] or training.run in entry['of']:
          found.append(_judging(config, group, entry, training))
  found.sort(key=lambda part: part.stage)
  return [
    dataclasses.replace(part, number=i) for i, part in enumerate(found, 1)
  ]


def _in_order(runs) -> list[Mapping]:
  """Runs after those that they start from."""
  done: list[Mapping] = []
  waiting = list(runs)
  while waiting:
    names = [run['name'] for run in done]
    ready = [r for r in waiting if not r['start'] or r['start'] in names]
    done += ready
    waiting = [r for r in waiting if r not in ready]
  return done


def _training(config, run, seed, workdir, trained: dict) -> Part:
  name = f'{run["name"]}_seed{seed}'
  own, needs = {'seed': seed}, None
  stage = 0
  if run['start']:
    start = trained[f'{run["start"]}_seed{seed}']
    own['init_from'], needs = _last_checkpoint(start), start.name
    stage = start.stage + 1
  return Part(
    number=0,
    name=name,
    mode='train',
    run=run['name'],
    asked='',
    seed=seed,
    base=run['base'],
    config=_config(config, 'runs', run, own),
    folder=workdir / name,
    needs=needs,
    stage=stage,
  )


def _last_checkpoint(training: Part) -> str:
  """By name, so that no earlier one is taken where this is damaged."""
  steps = training.config.train.steps
  return str(training.folder / 'checkpoints' / str(steps))


def _judging(config, group, entry, training: Part) -> Part:
  name = f'{training.name}/{group}/{entry["name"]}'
  own = {'checkpoint': _last_checkpoint(training)}
  made = _config(config, group, entry, own)
  if not needs_checkpoint(made):
    raise UserError(
      f'config.studies {entry["name"]!r} judges no checkpoint '
      f'(config.study.name={made.study.name!r}); run it by itself'
    )
  # As it will be on the model that the training makes, days from now.
  with _named(f'config.{group} {entry["name"]!r} of {training.name}'):
    whole = combine_saved(made, training.config)
    if training.seed == config.seeds[0]:  # others differ in nothing else
      _validate(whole)
  return Part(
    number=0,
    name=name,
    mode=MODES[group],
    run=training.run,
    asked=entry['name'],
    seed=training.seed,
    base=entry['base'],
    config=made,
    folder=training.folder / group / entry['name'],
    needs=training.name,
    stage=training.stage + 1,
  )


def _config(config, group: str, entry: Mapping, own: Mapping) -> ConfigDict:
  """A base config with what the description and the experiment change."""
  where = f'config.{group} {entry["name"]!r}'
  made = load_base(entry['base'], MODES[group])
  before = flatten(made)
  _change(made, entry['changes'], f'{where}: config')
  if config.data_dir:
    own = {**own, 'data.dir': config.data_dir}
  changed = flatten(ConfigDict(entry['changes']))
  for name in own:
    if f'config.{name}' in changed:
      raise UserError(
        f'{where}: config.{name} is changed, which the experiment itself sets '
        '(by `seeds`, `start` or `data_dir`, or to the weights that are '
        'judged); leave it out'
      )
  made.update_from_flattened_dict(own)
  if made.mode != MODES[group]:
    raise UserError(
      f'{where}: config.mode={made.mode!r} is changed; name it in another group'
    )
  with _named(where):
    if group != 'runs':
      same = [name for name in changed if before[name] == flatten(made)[name]]
      refuse_unchanged(made, same)
    _validate(made)
  return made


def _validate(config: ConfigDict) -> None:
  if config.mesh == _any_mesh():  # else it asks for devices, which may be there
    validate(config, 1)


@functools.cache
def _any_mesh() -> ConfigDict:
  return default().mesh


@contextlib.contextmanager
def _named(where: str):
  """Errors say of which entry they are."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def _change(config: ConfigDict, changes: object, path: str) -> None:
  if not isinstance(changes, Mapping):
    raise UserError(f'{path}: {changes!r} is no dict of fields')
  for name, value in changes.items():
    choose(f'{path}: a field', name, config)
    if isinstance(config[name], ConfigDict):
      _change(config[name], value, f'{path}.{name}')
      continue
    try:
      config[name] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
      kind = type(config[name]).__name__
      raise UserError(
        f'{path}.{name}={value!r} is of another type; give a {kind}'
      ) from error


def load_base(path: str, mode: str) -> ConfigDict:
  """The configuration of a file such as configs/digits_moe.py.

  Args:
    path: of the file, from the current folder.
    mode: that it must have.

  Raises:
    UserError: there is none, it cannot be loaded or is of another mode.
  """
  file = pathlib.Path.cwd() / local_path(path, 'base')
  if not file.is_file() or file.suffix != '.py':
    raise UserError(
      f'base={path!r} is no Python file in {file.parent}; give the path of a '
      'config file from the folder in which the command is run'
    )
  found = _loaded(file, path, file.read_bytes()).copy_and_resolve_references()
  if found.get('mode') != mode:
    raise UserError(
      f'base={path!r} has config.mode={found.get("mode")!r}, and {mode!r} is '
      'needed; give another file'
    )
  return found


@functools.cache
def _loaded(file: pathlib.Path, path: str, content: bytes) -> ConfigDict:
  del content  # one that was edited is another
  spec = importlib.util.spec_from_file_location(f'base_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config()
  except Exception as error:  # it is any Python
    said = str(error).strip().split('\n')[0]
    raise UserError(
      f'base={path!r} cannot be loaded: {type(error).__name__}: {said}'
    ) from error
