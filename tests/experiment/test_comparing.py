"""Pairs of runs on records made by hand."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import files
from vmoe_robust.experiment import accuracies, comparing
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import State
from vmoe_robust.report.records import write_records
from vmoe_robust.report.statistics import rate

CONDITIONS = ('pgd linf 25.5/255', 'pgd linf 51/255')
FINISHED = State('finished')


def attacked(
  folder, run, seed, right, index=(0, 1, 2, 3), clean=4, asked='pgd'
):
  """A part whose attack left these images right at each radius."""
  name = f'{run}_seed{seed}/attacks/{asked}'
  place = folder / name
  n = len(index)
  label = np.arange(n)
  columns = {
    'condition': np.repeat(CONDITIONS, n),
    'index': np.tile(index, 2),
    'label': np.tile(label, 2),
    'prediction_before': np.tile(np.where(np.arange(n) < clean, label, 9), 2),
    'prediction_after': np.concatenate(
      [np.where(np.isin(np.arange(n), r), label, -1) for r in right]
    ),
  }
  place.mkdir(parents=True)
  write_records(place / 'records.parquet', columns)
  found = {'asked': {}, 'weights': {}, 'data': {}}
  found |= dict(format='vmoe_robust results', format_version=1, warnings=[])
  found['summary'] = {'clean_accuracy': rate(np.arange(n) < clean)}
  found['rows'] = [
    {'condition': name, 'robust_accuracy': rate(np.isin(np.arange(n), r))}
    for name, r in zip(CONDITIONS, right, strict=True)
  ]
  found['files'] = {'records': {'name': 'records.parquet', 'rows': 2 * n}}
  files.write_json(place / 'results.json', found)
  return Part(
    number=1,
    name=name,
    mode='attack',
    run=run,
    asked=asked,
    seed=seed,
    base='',
    config=config_lib.default(),
    folder=place,
    needs=None,
    stage=1,
  )


@pytest.fixture
def experiment():
  return config_lib.ConfigDict(
    dict(
      comparisons=(('moe', 'dense'),),
      seeds=(0, 1),
      attacks=({'name': 'pgd'},),
      unions=(),
    ),
    convert_dict=False,
  )


def compared(experiment, parts, **states):
  found = {part.name: FINISHED for part in parts} | states
  return comparing.compare(experiment, parts, found, {})


def test_images_are_paired_and_seeds_averaged(experiment, tmp_path):
  parts = [
    attacked(tmp_path, 'moe', 0, [(0, 1, 2), (0,)]),
    attacked(tmp_path, 'dense', 0, [(2, 3), ()], clean=3),
    attacked(tmp_path, 'moe', 1, [(0, 1, 2, 3), ()]),
    attacked(tmp_path, 'dense', 1, [(3,), ()]),
  ]
  clean, first, second = compared(experiment, parts)
  assert [r['condition'] for r in (clean, first, second)] == [
    'clean',
    *CONDITIONS,
  ]
  zero, one = first['seeds']
  counts = ('both', 'only_first', 'only_second', 'neither')
  assert [zero[name] for name in counts] == [1, 2, 1, 0]
  assert zero['seed'] == 0 and zero['p'] == 1.0
  assert zero['accuracy_first']['value'] == 0.75
  assert zero['accuracy_second']['value'] == 0.5
  assert [one[name] for name in counts] == [1, 3, 0, 0]
  # Differences .25 and .75: mean .5, standard error .25, t(.975, 1) = 12.706,
  # and no difference is more than 1.
  difference = first['difference']
  assert difference['value'] == 0.5 and difference['n'] == 2
  assert difference['over'] == 'seeds'
  assert difference['interval'] == [-1.0, 1.0]  # of 0.5 - 12.7062 * 0.25, ...
  assert [s['difference']['value'] for s in clean['seeds']] == [0.25, 0.0]
  shown = comparing.show([clean, first, second])
  line = next(x for x in shown.splitlines() if 'pgd linf 25.5/255' in x)
  assert '+50.0' in line and '+25.0, +75.0' in line and '87.5%' in line


def test_the_order_of_records_does_not_matter(experiment, tmp_path):
  one = attacked(tmp_path, 'moe', 0, [(0, 1), (0,)])
  two = attacked(tmp_path, 'dense', 0, [(0, 1), (0,)])
  path = two.folder / 'records.parquet'
  columns = comparing.read_results(two.folder).records.to_pydict()
  order = [3, 1, 0, 2, 7, 5, 6, 4]
  write_records(path, {k: np.array(v)[order] for k, v in columns.items()})
  for row in compared(experiment, [one, two]):
    assert row['seeds'][0]['difference']['value'] == 0
    assert row['seeds'][0]['only_first'] == row['seeds'][0]['only_second'] == 0


def test_one_seed_has_the_interval_over_images(experiment, tmp_path):
  experiment.seeds = (0,)
  parts = [
    attacked(tmp_path, run, 0, [right, ()])
    for run, right in (('moe', (0, 1)), ('dense', (0,)))
  ]
  row = compared(experiment, parts)[1]
  assert row['difference'] == {
    'value': 0.25,
    'interval': row['seeds'][0]['difference']['interval'],
    'n': 1,
    'over': 'images',
  }


def test_what_cannot_be_compared_is_said(experiment, tmp_path):
  parts = [
    attacked(tmp_path, 'moe', 0, [(0,), ()]),
    attacked(tmp_path, 'dense', 0, [(0,), ()], index=(0, 1, 2, 5)),
    attacked(tmp_path, 'moe', 1, [(0,), ()]),
    dataclasses.replace(
      attacked(tmp_path, 'dense', 1, [(0,), ()]), name='unfinished'
    ),
  ]
  [row] = compared(experiment, parts, unfinished=State('cut short'))
  assert row['condition'] is None and row['difference'] is None
  assert 'seed 0' in row['missing'][0] and 'same images' in row['missing'][0]
  assert row['missing'][1] == 'seed 1: unfinished is cut short'
  assert comparing.show([row]).count('\n') == 1
  # What is asked of one alone is no comparison.
  assert compared(experiment, parts[:1]) == []
  assert comparing.show([]) == ''


def test_a_seed_of_other_examples_counts_in_no_pair(experiment, tmp_path):
  """As in the accuracies, so that both are of the same seeds."""
  parts = [
    attacked(tmp_path, run, seed, [right, ()])
    for seed, right in ((0, (0,)), (1, (0, 1)))
    for run in ('moe', 'dense')
  ]
  for part in parts:
    path = part.folder / 'results.json'
    found = json.loads(path.read_text())
    found['data']['fingerprint'] = 'ab'[part.seed]
    found['summary']['norm'] = 'linf'
    for row in found['rows']:
      row |= dict(norm='linf', eps=0.1)
    files.write_json(path, found)
  states = {part.name: FINISHED for part in parts}
  found, left_out = accuracies.attacked(parts, states)
  assert [part.seed for part, _ in found] == [0, 0]
  for row in comparing.compare(experiment, parts, states, left_out):
    assert [one['seed'] for one in row['seeds']] == [0]
    [text] = row['missing']
    assert text.startswith('seed 1: moe_seed1/attacks/pgd is left out: its ex')


def test_results_of_another_form_are_a_line(experiment, tmp_path):
  experiment.seeds = (0,)
  for change in (
    lambda found: found['rows'][0].pop('condition'),
    lambda found: found.update(weights=None),
    lambda found: found['files']['records'].pop('name'),
  ):
    parts = [
      attacked(tmp_path / str(id(change)), run, 0, [(0,), ()])
      for run in ('moe', 'dense')
    ]
    path = parts[1].folder / 'results.json'
    found = json.loads(path.read_text())
    change(found)
    files.write_json(path, found)
    [row] = compared(experiment, parts)
    assert row['missing'][0].startswith(f'seed 0: {parts[1].name}: ')


def test_records_of_another_run_are_not_compared(experiment, tmp_path):
  experiment.seeds = (0,)
  one, two = (
    attacked(tmp_path, run, 0, [right, ()])
    for run, right in (('moe', (0, 1)), ('dense', (0,)))
  )
  shutil.copy(one.folder / 'records.parquet', two.folder)
  [row] = compared(experiment, [one, two])
  [text] = row['missing']
  assert text.startswith(f'seed 0: {two.name}: the records have 0.5 right')
  assert 'results.json says 0.25' in text


def test_a_sweep_is_shown_at_few_radii():
  base = {'first': 'a', 'second': 'b', 'attack': 'pgd'}
  rows = [base | {'condition': c} for c in ('clean', *map(str, range(26)))]
  shown = [row['condition'] for row in comparing._few(rows)]
  assert shown == ['clean', '4', '11', '18', '25']
  again = [base | {'attack': 'aa', 'condition': c} for c in ('clean', 'aa 1')]
  shown = [row['condition'] for row in comparing._few([*rows, *again])]
  assert shown == ['clean', '4', '11', '18', '25', 'aa 1']


def test_an_image_of_a_union_is_right_under_all(experiment, tmp_path):
  experiment.seeds = (0,)
  experiment.attacks = ({'name': 'pgd'}, {'name': 'l1'})
  experiment.unions = ({'name': 'both', 'of': ('pgd', 'l1')},)
  parts = [
    attacked(tmp_path, 'moe', 0, [(0, 1, 2), (0, 1, 2)]),
    attacked(tmp_path, 'moe', 0, [(0, 2, 3), (0, 2, 3)], asked='l1'),
    attacked(tmp_path, 'dense', 0, [(0, 1, 2, 3)] * 2),
    attacked(tmp_path, 'dense', 0, [(1, 2, 3)] * 2, clean=3, asked='l1'),
  ]
  row = compared(experiment, parts)[-1]
  assert (row['attack'], row['condition']) == ('both', 'both')
  [seed] = row['seeds']
  # The first is right on 0 and 2; the second on 1 and 2, as 3 is wrong clean.
  assert seed['accuracy_first']['value'] == 0.5
  assert seed['accuracy_second']['value'] == 0.5
  assert (seed['both'], seed['only_first'], seed['only_second']) == (1, 1, 1)
  assert seed['neither'] == 1


def test_a_union_is_of_the_same_images(experiment, tmp_path):
  experiment.seeds = (0,)
  experiment.attacks = ({'name': 'pgd'}, {'name': 'l1'})
  experiment.unions = ({'name': 'both', 'of': ('pgd', 'l1')},)
  parts = [
    attacked(tmp_path, run, 0, [(0,), (0,)], index=index, asked=asked)
    for run in ('moe', 'dense')
    for asked, index in (('pgd', (0, 1, 2, 3)), ('l1', (0, 1, 2, 4)))
  ]
  row = compared(experiment, parts)[-1]
  assert row['condition'] is None
  assert row['missing'] == [
    'seed 0: the conditions of a union are of other images'
  ]
