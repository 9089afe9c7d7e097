"""The fields of an experiment, and which of their values are refused."""

import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.config import UserError, choose
from vmoe_robust.report.page.runs import NOT_RUNS
from vmoe_robust.report.verdicts import CLEAN

# The fields of a run, an attack and a study, with their defaults; None: needed.
_RUN = dict(name=None, base=None, changes={}, start='')
_ASKED = dict(name=None, base=None, changes={}, of=())
GROUPS = {'runs': _RUN, 'attacks': _ASKED, 'studies': _ASKED}
FIELDS = (*GROUPS, 'unions', 'comparisons', 'measures', 'seeds', 'select')
FIELDS += ('data_dir',)
_UNION = dict(name=None, of=None)
_MEASURE = dict(
  name=None, study=None, number=None, condition='', unit='', of=(), against=''
)
_TEXTS = ('name', 'base', 'start', 'study', 'condition', 'unit', 'against')
UNITS = ('', '%', 'points')  # of a measure, as figures have them


def describe(
  *,
  runs: Sequence[Mapping],
  attacks: Sequence[Mapping] = (),
  studies: Sequence[Mapping] = (),
  unions: Sequence[Mapping] = (),
  comparisons: Sequence[tuple[str, str]] = (),
  measures: Sequence[Mapping] = (),
  seeds: Sequence[int] = (0,),
) -> ConfigDict:
  """An experiment, as a file in `configs/experiments/` returns it.

  Args:
    runs: models to train: a `name`, a `base` (the path of a config file),
      `changes` to it, nested as its fields are, and maybe `start`, the name of
      the run whose weights it starts from (`config.init_from`).
    attacks: what is asked of the trained models: a `name`, a `base` with
      config.mode='attack', `changes`, and `of`, the names of runs; (): all.
    studies: the same with config.mode='study'.
    unions: a `name`, and `of`, the names of attacks, such as those in three
      norms: an image stands if it stands under all of them.
    comparisons: pairs of runs, which are compared image by image under each
      attack and each union that is asked of both.
    measures: numbers of studies, of which there are means over seeds: a `name`,
      the `study`, and where its results have the `number`: keys in `summary`,
      or in the row of a `condition`, such as `('margin', 'total')`. Its `unit`
      is '%' of a share, 'points' of a difference of shares (both times 100), or
      ''. `of` names runs; (): all that the study is asked of. `against` names
      an attack: does the number go with the accuracy under it, at the largest
      radius, over the trainings?
    seeds: each run is trained with each of these.

  Returns:
    These fields, and two that the command line sets: `select`, the names of
    runs to which the experiment is restricted, and `data_dir`, which becomes
    `config.data.dir` of all.
  """
  return ConfigDict(
    dict(
      runs=tuple(runs),
      attacks=tuple(attacks),
      studies=tuple(studies),
      unions=tuple(unions),
      comparisons=tuple(comparisons),
      measures=tuple(measures),
      seeds=tuple(seeds),
      select=(),
      data_dir='',
    ),
    convert_dict=False,
  )


def checked(config: ConfigDict) -> ConfigDict:
  """The experiment with defaults filled in, restricted to `config.select`.

  Raises:
    UserError: a field is missing, unknown or wrong, or a name is used twice or
      names nothing.
  """
  if 'mode' in config:
    raise UserError(
      '--config is that of one run (python -m vmoe_robust.main); an experiment '
      'is one such as configs/experiments/digits_paper.py'
    )
  for name in config:
    choose('a field of the experiment', name, FIELDS)
  for name in FIELDS:
    if name not in config:
      raise UserError(f'the experiment has no {name!r}; make it by describe()')
  out: dict[str, list] = {
    name: _entries(name, config[name], fields)
    for name, fields in GROUPS.items()
  }
  names = [run['name'] for run in out['runs']]
  _check_seeds(config.seeds)
  for run in out['runs']:
    if run['start']:
      choose(f'start of run {run["name"]!r}', run['start'], names)
  for group in ('attacks', 'studies'):
    for entry in out[group]:
      for name in entry['of']:
        choose(f'config.{group} {entry["name"]!r}: of', name, names)
  out['unions'] = _unions(config.unions, out['attacks'])
  out['measures'] = _measures(config.measures, out, names)
  for pair in config.comparisons:
    if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
      raise UserError(f'config.comparisons has {pair!r}; give two runs')
    for name in pair:
      choose('config.comparisons', name, names)
  for name in config.select:
    choose('config.select', name, names)
  selected = _with_starts(out['runs'], config.select)
  out['runs'] = [run for run in out['runs'] if run['name'] in selected]
  out['comparisons'] = [
    tuple(pair) for pair in config.comparisons if set(pair) <= selected
  ]
  return ConfigDict(
    dict(config.items()) | {n: tuple(v) for n, v in out.items()},
    convert_dict=False,
  )


def _entries(
  group: str, entries: Sequence, fields: Mapping[str, object]
) -> list[dict]:
  found = []
  for entry in entries:
    where = f'config.{group}'
    if not isinstance(entry, Mapping):
      raise UserError(f'{where} has {entry!r}; give dict(name=..., base=...)')
    where = f'{where} {entry.get("name", "without a name")!r}'
    for name in entry:
      choose(f'{where}: a field', name, fields)
    entry = {**fields, **entry}
    for name, value in entry.items():
      if value is None:
        raise UserError(f'{where} has no {name!r}; give dict({name}=...)')
      if name in _TEXTS and not isinstance(value, str):
        raise UserError(f'{where}: {name}={value!r} is no text; quote it')
    if not re.fullmatch(r'[\w+-]+', entry['name'], re.ASCII):
      raise UserError(
        f'{where}: the name becomes a folder; use letters, digits, _, + and -'
      )
    taken = (*NOT_RUNS, CLEAN)  # folders of a run, and a figure
    if group in ('attacks', 'studies') and entry['name'] in taken:
      raise UserError(
        f'{where}: a folder or figure of another kind is of this name; use '
        f'another, not one of {", ".join(taken)}'
      )
    if isinstance(entry.get('of'), str):
      raise UserError(f'{where}: of={entry["of"]!r} is no tuple of runs')
    if entry['name'] in [other['name'] for other in found]:
      raise UserError(f'{where}: the name is used twice; give another')
    found.append(entry)
  if group == 'runs' and not found:
    raise UserError('config.runs is empty; give dict(name=..., base=...)')
  return found


def _unions(unions: Sequence, attacks: Sequence[Mapping]) -> list[dict]:
  found = _entries('unions', unions, _UNION)
  names = [attack['name'] for attack in attacks]
  for union in found:
    where = f'config.unions {union["name"]!r}'
    if union['name'] in names:
      raise UserError(f'{where}: an attack has the name; give another')
    if len(set(union['of'])) < 2:
      raise UserError(f'{where}: of={union["of"]!r}; give two attacks or more')
    for name in union['of']:
      choose(f'{where}: of', name, names)
  return found


def _measures(measures: Sequence, known: Mapping, runs: Sequence[str]):
  found = _entries('measures', measures, _MEASURE)
  named = lambda group: [entry['name'] for entry in known[group]]
  for entry in found:
    where = f'config.measures {entry["name"]!r}'
    choose(f'{where}: study', entry['study'], named('studies'))
    if entry['against']:
      choose(f'{where}: against', entry['against'], named('attacks'))
    choose(f'{where}: unit', entry['unit'], UNITS)
    (study,) = (s for s in known['studies'] if s['name'] == entry['study'])
    for name in entry['of']:
      choose(f'{where}: of', name, study['of'] or runs)
    number = entry['number']
    keys = isinstance(number, Sequence) and not isinstance(number, str)
    if not keys or not number or not all(isinstance(n, str) for n in number):
      raise UserError(
        f"{where}: number={number!r}; give keys, such as ('margin', 'total')"
      )
  return found


def _check_seeds(seeds):
  whole = all(isinstance(s, int) and s >= 0 for s in seeds)
  if not seeds or not whole or len(set(seeds)) < len(seeds):
    raise UserError(
      f'config.seeds={seeds!r} must be different whole numbers from 0, such '
      'as (0, 1, 2)'
    )


def _with_starts(runs: Sequence[Mapping], select: Sequence[str]) -> set[str]:
  """The selected runs with those that they start from; all for ()."""
  starts = {run['name']: run['start'] for run in runs}
  selected = set()
  for name in select or starts:
    path = []
    while name and name not in selected:
      if name in path:
        raise UserError(f'start of run {name!r} leads back to itself')
      path.append(name)
      name = starts[name]
    selected.update(path)
  return selected
