"""Numbers of studies over seeds, and whether they go with robustness."""

import pathlib
import tarfile

import pytest
from etils import epath
from ml_collections import ConfigDict

from tests.experiment.test_figures import row
from vmoe_robust.experiment.accuracies import studied
from vmoe_robust.experiment.description import checked
from vmoe_robust.experiment.figures import figures
from vmoe_robust.experiment.markdown import markdown
from vmoe_robust.experiment.measures import measures, relations
from vmoe_robust.experiment.parts import Part, parts
from vmoe_robust.experiment.states import State
from vmoe_robust.report.page import draw
from vmoe_robust.report.results import Results, read_results

ROOT = pathlib.Path(__file__).parents[2]
NORM = dict(
  name='norm', study='jacobian', condition='clean', number=('margin', 'total')
)
NORM |= dict(unit='', of=(), against='aa')
DAMAGE = dict(name='damage', study='frozen', condition='', unit='points')
DAMAGE |= dict(number=('compared', 'eps 1', 'difference'), of=(), against='')


def experiment(*asked):
  runs = ({'name': 'dense'}, {'name': 'moe'})
  return ConfigDict(dict(runs=runs, measures=asked), convert_dict=False)


def study(run, seed, value, asked='jacobian'):
  part = Part(
    number=1,
    name=f'{run}_seed{seed}/studies/{asked}',
    mode='study',
    run=run,
    asked=asked,
    seed=seed,
    base='',
    config=ConfigDict(),
    folder=pathlib.Path(),
    needs=None,
    stage=1,
  )
  estimate = {'value': value, 'interval': [0.0, 9.0], 'n': 4}
  rows = [{'condition': 'clean', 'margin': {'total': estimate}}]
  summary = {'compared': {'eps 1': {'difference': estimate, 'count': 7}}}
  return part, Results(dict(rows=rows, summary=summary), epath.Path())


def test_a_number_of_each_run_over_its_seeds():
  found = [study('moe', seed, value) for seed, value in ((0, 1.0), (1, 3.0))]
  found += [study('dense', 0, 2.0), study('moe', 0, 0.25, 'frozen')]
  dense, moe, damage = measures(experiment(NORM, DAMAGE), found, pytest.fail)
  assert (dense['measure'], dense['run']) == ('norm', 'dense')
  # Of one seed it is the study's own interval, over images.
  assert dense['mean']['interval'] == [0.0, 9.0]
  assert [one['number']['value'] for one in moe['seeds']] == [1.0, 3.0]
  # The standard error is 1, and Student's t of one degree 12.7062.
  assert moe['mean']['value'] == 2
  assert moe['mean']['interval'] == pytest.approx([-10.7062, 14.7062], abs=1e-4)
  assert (damage['run'], damage['mean']['value']) == ('moe', 0.25)
  only = experiment(dict(NORM, of=('dense',)))
  assert [r['run'] for r in measures(only, found, pytest.fail)] == ['dense']
  shares = experiment(dict(NORM, unit='%'))
  high = [study('moe', seed, value) for seed, value in ((0, 0.9), (1, 1.0))]
  [share] = measures(shares, high, pytest.fail)
  assert share['mean']['interval'] == [pytest.approx(0.95 - 0.63531), 1]


def test_a_count_is_a_number_without_an_interval():
  asked = dict(DAMAGE, unit='', number=('compared', 'eps 1', 'count'))
  [row] = measures(
    experiment(asked), [study('moe', 0, 1.0, 'frozen')], pytest.fail
  )
  assert row['mean']['value'] == 7 and row['mean']['interval'] is None


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (dict(number=('margin', 'totl')), "no 'totl', but total"),
    (dict(number=('margin',)), 'is no number, but has total'),
    (dict(number=('margin', 'total', 'value', 'x')), 'but a number'),
    (dict(condition='eps 1'), "0 rows of 'eps 1'; its conditions are clean"),
    (dict(condition=''), "summary has no 'margin', but compared"),
  ],
)
def test_a_number_that_is_not_there_is_told(change, words):
  lines = []
  found = [study('moe', 0, 1.0)]
  assert not measures(experiment(dict(NORM, **change)), found, lines.append)
  [line] = lines
  assert line.startswith('moe_seed0/studies/jacobian is left out of norm: ')
  assert words in line


def twins():
  """Two models: in each, the larger number goes with the lower accuracy.

  Between them it is the other way round.
  """
  values = {'dense': (1, 2, 3, 4), 'moe': (11, 12, 13, 14)}
  shares = {'dense': (0.4, 0.3, 0.2, 0.1), 'moe': (0.9, 0.8, 0.7, 0.6)}
  found = [
    study(run, seed, float(value))
    for run in values
    for seed, value in enumerate(values[run])
  ]
  rows = [
    row(run, 'aa', 'aa linf 16/255', 0.06, *shares[run]) for run in shares
  ]
  rows += [row(run, 'aa', 'clean', 0, *[1.0] * 4) for run in shares]
  rows += [row(run, 'aa', 'aa linf 8/255', 0.03, *[1.0] * 4) for run in shares]
  return found, rows


def test_what_sets_models_apart_is_not_what_sets_their_trainings_apart():
  found, rows = twins()
  config = experiment(NORM, DAMAGE)
  measured = measures(config, found, pytest.fail)
  [related] = relations(config, measured, rows)
  assert related['condition'] == 'aa linf 16/255'  # the largest radius
  # Ranks 1 to 8 against 4, 3, 2, 1, 8, 7, 6, 5: 1 - 6 x 40 / (8 x 63).
  assert related['correlation']['value'] == pytest.approx(1 - 240 / 504)
  assert related['within']['value'] == -1
  # Of 4! x 4! pairings two are as far from chance.
  assert related['within']['p'] == pytest.approx(2 / 576, abs=2e-3)
  of_runs = related['of_runs']
  assert [of_runs[run]['value'] for run in ('dense', 'moe')] == [-1, -1]
  assert of_runs['moe']['p'] == pytest.approx(2 / 24, abs=0.01)
  assert not related['missing'] and len(related['trainings']) == 8


def test_trainings_without_one_of_both_are_named():
  found, rows = twins()
  found.append(study('moe', 4, None))
  rows[1]['seeds'] = rows[1]['seeds'][:2]
  config = experiment(NORM)
  measured = measures(config, found, pytest.fail)
  [related] = relations(config, measured, rows)
  lost = [(one['run'], one['seed']) for one in related['missing']]
  assert lost == [('moe', 2), ('moe', 3), ('moe', 4)]
  assert related['correlation']['n'] == 6
  assert list(related['of_runs']) == ['dense']  # two trainings are too few
  about = {'name': 'twins', 'command': 'python -m x'}
  text = markdown(about, [], {}, [], {}, [], [], measured, [related])
  assert (
    'Left out of norm, for they were not attacked, or the number is not known: '
    'moe_seed2, moe_seed3, moe_seed4.'
  ) in text
  assert relations(config, measured, []) == []


def test_tables_and_pictures():
  found, rows = twins()
  found += [study('moe', seed, 0.25, 'frozen') for seed in (0, 1)]
  config = experiment(NORM, DAMAGE)
  measured = measures(config, found, pytest.fail)
  related = relations(config, measured, rows)
  about = {'name': 'twins', 'command': 'python -m x'}
  text = markdown(about, [], {}, [], {}, [], [], measured, related)
  norm = '| norm | moe | 12.5 | 10.45 to 14.55 | 0, 1, 2, 3 | 11, 12, 13, 14 |'
  assert norm in text
  assert '| damage | moe | +25.0 | - | 0, 1 | +25.0, +25.0 |' in text
  under = '| norm | aa linf 16/255'
  assert f'{under} | all | 8 | 0.52 | -0.34 to 0.91 | 0.2' in text
  assert f'{under} | within runs | 8 | -1.00 | - | 0.00' in text
  bars, damage, points = figures([], [], measured, related)
  assert (bars.name, bars.title) == ('measure_norm', 'norm, 4 seeds')
  assert bars.bars[1].dots == [11, 12, 13, 14]
  assert damage.x_label == 'damage, percentage points'
  assert damage.bars[0].value == 25 and damage.bars[0].dots == [25, 25]
  assert points.name == 'relation_norm'
  assert points.title == 'norm and accuracy, 8 trainings'
  assert '0.52 (p 0.2) of all, -1.00 (p 0.00' in points.note
  assert [line.joined for line in points.lines] == [False, False]
  assert points.lines[1].y == pytest.approx([90, 80, 70, 60])


def test_points_that_are_not_joined_have_no_line(tmp_path):
  found, rows = twins()
  measured = measures(experiment(NORM), found, pytest.fail)
  figure = figures([], [], [], relations(experiment(NORM), measured, rows))[0]
  figure.draw(tmp_path / 'points.png')
  data = {
    'title': figure.title, 'x_label': 'x', 'y_label': 'y', 'unit': '',
    'lines': [
      dict(label='moe', x=list(range(40)), y=[1.0] * 40, joined=joined)
      | dict(low=[None] * 40, high=[None] * 40)
      for joined in (True, False)
    ],
  }  # fmt: skip
  [text] = draw.pictures(data)
  assert text.count('class="c0 line"') == 1 and 'class="c1 line"' not in text
  assert text.count('data-tip') == 40  # points of the second one alone


def test_the_numbers_that_digits_paper_names_are_there(tmp_path, monkeypatch):
  """In the results that are kept: a name that is wrong costs a night."""
  from configs.experiments import digits_paper

  monkeypatch.chdir(ROOT)
  config = digits_paper.get_config()
  config.select = ('moe_e8', 'moe_e8_adv', 'dense', 'dense_adv')
  config.seeds = (0,)
  every = [part for part in parts(config, tmp_path) if part.mode == 'study']
  wanted = {f'{part.name}/results.json' for part in every}
  with tarfile.open(ROOT / 'docs/results/digits/runs.tar.xz') as archive:
    for member in archive:
      if member.name.removeprefix('./') in wanted:
        archive.extract(member, tmp_path, filter='data')
  states = {part.name: State('finished') for part in every}
  names = {one['study'] for one in config.measures}
  config = checked(config)
  found, left_out = studied(every, states, names)
  assert not left_out
  assert len(found) == len(wanted) - 2  # routing_change has no measure
  rows = measures(config, found, pytest.fail)
  asked = {one['name'] for one in config.measures}
  assert {row['measure'] for row in rows} == asked
  by_name = {(one['measure'], one['run']): one['mean'] for one in rows}
  damage = by_name['routing_damage', 'moe_e8_adv']
  folder = tmp_path / 'moe_e8_adv_seed0/studies/frozen_routing'
  compared = read_results(folder)['summary']['compared']['eps 16/255']
  counts = compared['routing_damage_of_free_attack']
  points = (counts['only_first'] - counts['only_second']) / 360
  assert damage['value'] == pytest.approx(points)
