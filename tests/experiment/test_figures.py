"""Accuracies over seeds, and the figures of an experiment."""

import pytest
from ml_collections import ConfigDict

from vmoe_robust.experiment.accuracies import accuracies, attacked, clean
from vmoe_robust.experiment.figures import figures
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import State
from vmoe_robust.files import write_json
from vmoe_robust.report import statistics

RATE = dict(interval=[0.0, 1.0], n=4)


def row(run, attack, condition, eps, *values):
  seeds = [
    {'seed': i, 'accuracy': dict(RATE, value=value)}
    for i, value in enumerate(values)
  ]
  mean = statistics.over_seeds([s['accuracy'] for s in seeds], statistics.SHARE)
  return dict(
    run=run,
    attack=attack,
    condition=condition,
    norm='linf',
    eps=eps,
    seeds=seeds,
    accuracy=mean,
  )


def difference(first, second, attack, condition, *values):
  seeds = [
    {
      'seed': i,
      'difference': {'value': v, 'interval': [v - 0.1, v + 0.1], 'n': 4},
      'accuracy_first': dict(RATE, value=0.5 + v),
      'accuracy_second': dict(RATE, value=0.5),
      'p': 1.0,
    }
    for i, v in enumerate(values)
  ]
  return {
    'first': first,
    'second': second,
    'attack': attack,
    'condition': condition,
    'seeds': seeds,
    'difference': statistics.over_seeds(
      [s['difference'] for s in seeds], statistics.DIFFERENCE
    ),
    'missing': [],
  }


def test_each_condition_has_bars_and_a_sweep_has_lines():
  few = [
    row(run, 'aa', condition, eps, 0.25, 0.75)
    for condition, eps in (('clean', 0), ('aa linf 16/255', 16 / 255))
    for run in ('dense', 'moe')
  ]
  many = [
    row('moe', 'pgd', f'pgd linf {i / 255:.6g}' if i else 'clean', i / 255, 0.5)
    for i in range(6)
  ]
  bars, lines, clean = figures([*few, *many], [])
  assert bars.name == 'accuracy_aa_linf_16_255'
  assert bars.title == 'Accuracy, aa linf 16/255, 4 images, 2 seeds'
  assert [bar.label for bar in bars.bars] == ['dense', 'moe']
  assert (bars.bars[0].value, bars.bars[0].dots) == (0.5, [0.25, 0.75])
  [line] = lines.lines
  assert line.x == [0, 1, 2, 3, 4, 5] and line.y == [0.5] * 6
  assert clean.name == 'accuracy_clean' and len(clean.bars) == 2


def test_attacks_that_are_called_alike_are_told_apart():
  rows = [row('moe', 'aa_long', 'aa linf 16/255', 16 / 255, 0.5)]
  rows.insert(0, row('moe', 'aa_long', 'clean', 0, 0.5))
  pairs = [difference('moe', 'dense', 'aa_long', 'aa linf 16/255', 0.5)]
  titles = [figure.title for figure in figures(rows, pairs)]
  assert titles == [
    'Accuracy, aa linf 16/255 (aa_long), 4 images, 1 seed',
    'Accuracy, clean, 4 images, 1 seed',
    'Difference of accuracies, aa linf 16/255 (aa_long)',
  ]


def test_differences_are_in_points_at_the_last_condition():
  rows = [
    difference('moe', 'dense', 'aa', 'clean', 0.0, 0.0),
    difference('moe', 'dense', 'aa', 'aa linf 25.5/255', 0.01, 0.03),
    difference('e2', 'dense', 'aa', 'aa linf 25.5/255', -0.25),
    difference('moe', 'dense', 'union', 'union', 0.5),
  ]
  first, union = figures([], rows)
  assert first.title == 'Difference of accuracies, aa linf 25.5/255'
  moe, two = first.bars
  assert moe.label == 'moe - dense' and moe.value == pytest.approx(2)
  assert moe.dots == [1, 3] and first.unit == 'points'
  assert (moe.group, two.group) == ('over seeds', 'one seed, over images')
  assert (two.value, two.dots) == (-25, [])  # one seed: the point itself
  assert (two.low, two.high) == pytest.approx((-35, -15))
  assert union.name == 'difference_union'


def part_of(folder, seed, accuracy):
  """An attack that is finished, of which a model keeps this accuracy."""
  name = f'moe_seed{seed}/attacks/aa'
  found = {'asked': {}, 'weights': {}, 'data': {}, 'files': {}}
  found |= dict(format='vmoe_robust results', format_version=1, warnings=[])
  found['summary'] = dict(norm='linf', clean_accuracy=dict(RATE, value=1.0))
  found['rows'] = [
    dict(condition='aa linf 25.5/255', norm='linf', eps=0.1)
    | dict(robust_accuracy=dict(RATE, value=accuracy))
  ]
  (folder / name).mkdir(parents=True)
  write_json(folder / name / 'results.json', found)
  return Part(
    number=1,
    name=name,
    mode='attack',
    run='moe',
    asked='aa',
    seed=seed,
    base='',
    config=ConfigDict(),
    folder=folder / name,
    needs=None,
    stage=1,
  )


@pytest.fixture
def config():
  return ConfigDict(
    dict(runs=({'name': 'moe'},), attacks=({'name': 'aa'},)), convert_dict=False
  )


def test_what_is_not_finished_or_not_known_is_left_out(tmp_path, config):
  parts = [part_of(tmp_path, 0, 0.5), part_of(tmp_path, 1, None)]
  states = {part.name: State('finished') for part in parts}
  found, left_out = attacked(parts, states)
  assert not left_out
  unattacked, row = accuracies(config, found)
  assert (unattacked['condition'], unattacked['eps']) == ('clean', 0)
  assert [one['seed'] for one in row['seeds']] == [0, 1]
  assert row['accuracy']['value'] is None
  [bar] = figures([unattacked, row], [])[0].bars
  assert bar.value != bar.value and bar.dots == [0.5]
  states[parts[1].name] = State('cut short')
  found, left_out = attacked(parts, states)
  assert not left_out
  _, row = accuracies(config, found)
  assert row['accuracy'] == dict(RATE, value=0.5, n=1, over='images')


@pytest.mark.parametrize('text', ['{', '{"format": "vmoe_robust results"}'])
def test_damaged_results_are_named_and_cost_no_other(tmp_path, config, text):
  parts = [part_of(tmp_path, seed, 0.5) for seed in (0, 1)]
  (parts[0].folder / 'results.json').write_text(text)
  states = {part.name: State('finished') for part in parts}
  found, left_out = attacked(parts, states)
  assert list(left_out) == ['moe_seed0/attacks/aa']
  assert [part.seed for part, _ in found] == [1]
  assert len(accuracies(config, found)) == 2


def test_clean_images_are_those_of_most_images():
  few = row('moe', 'aa', 'clean', 0, 0.5)
  many = row('moe', 'pgd', 'clean', 0, 0.75)
  many['seeds'][0]['accuracy']['n'] = 9
  assert clean([few, many]) == clean([many, few]) == {'moe': many}
  # Of several runs they are the same images, if one attack has all runs.
  other = row('dense', 'aa', 'clean', 0, 0.25)
  rows = [few, many, other]
  assert clean(rows) == clean(rows[::-1]) == {'moe': few, 'dense': other}
  apart = row('dense', 'fgsm', 'clean', 0, 0.25)
  assert clean([few, many, apart]) == {'moe': many, 'dense': apart}
