"""The page of an experiment of many runs."""

import json
import shutil

import pytest

from vmoe_robust.files import write_json
from vmoe_robust.report import page, writing
from vmoe_robust.report.figures import Bar, BarPlot

USAGE = {'seconds': 3.5, 'cpu_seconds': 6.25, 'peak_bytes': 7, 'joules': None}


def pair(first, condition, *values, attack='aa'):
  rate = lambda value: {'value': value, 'interval': [0.0, 1.0], 'n': 4}
  seeds = [
    {
      'seed': i,
      'difference': rate(v),
      'accuracy_first': rate(0.5 + v),
      'accuracy_second': rate(0.5),
      'p': 0.25,
    }
    for i, v in enumerate(values)
  ]
  mean = {
    'value': sum(values) / len(values),
    'interval': [-0.2, 0.1],
    'n': len(values),
    'over': 'seeds' if len(values) > 1 else 'images',
  }
  return {
    'first': first,
    'second': 'dense',
    'attack': attack,
    'condition': condition,
    'seeds': seeds,
    'difference': mean,
    'missing': [],
  }


@pytest.fixture
def folder(tmp_path, save_run):
  """An experiment of 17 attacked models."""
  for i in range(17):
    save_run(f'run{i}', before=[0, 1], after=[0, 9], labels=[0, 1])
  rows = [
    pair('moe', 'clean', 0.0, 0.0),
    pair('moe', 'aa linf 16/255', -0.04, 0.0),
    pair('wide', 'aa linf 16/255', 0.25),
  ]
  plot = BarPlot('bars', 'Main figure', 'accuracy', [Bar('moe', 0.5, 0.4, 0.6)])
  about = writing.entry(plot)
  writing.draw(tmp_path, about, plot)
  write_json(tmp_path / 'comparisons.json', rows)
  said = {
    'format': 'vmoe_robust experiment',
    'format_version': 1,
    'name': 'twins',
    'command': 'python -m vmoe_robust.experiment --config=twins.py',
    'figures': [about],
    'parts': [
      part | {'folder': f'run{i}'}
      for i, part in enumerate(
        [
          {'number': 1, 'name': 'a_seed0', 'state': 'finished', 'usage': USAGE},
          *[{'number': 2, 'name': 'b', 'state': 'failed', 'usage': None}] * 16,
        ]
      )
    ],
  }
  write_json(tmp_path / 'experiment.json', said)
  return tmp_path


def shown(folder):
  out = folder / 'report.html'
  lines = page.write([folder], out)
  return ' '.join(out.read_text().split()), lines


def test_it_says_what_runs_say_together(folder):
  text, lines = shown(folder)
  assert not lines
  sentence = (
    'under aa linf 16/255: 48.0% and 50.0%, <strong>-2.0 [-20.0, +10.0]'
  )
  assert sentence in text and '(over 2 seeds)' in text
  assert '+25.0 [-20.0, +10.0]</strong> points (one seed' in text
  assert 'Experiment twins, 1 of 17 parts are finished' in text
  assert 'Main figure' in text and 'a_seed0' in text
  assert '-4.0, +0.0' in text and '0.25, 0.25' in text
  assert '<td>0, 1</td>' in text  # their seeds
  assert '6.25' in text
  assert 'run3' not in text  # has a page of its own


def test_more_than_two_pairs_are_a_table(folder):
  path = folder / 'comparisons.json'
  rows = json.loads(path.read_text())
  write_json(path, [*rows, pair('hash', 'aa linf 16/255', 0.0)])
  text, _ = shown(folder)
  assert 'class="verdict"' not in text
  assert '<caption>3 pairs: accuracy under aa linf 16/255</caption>' in text
  assert '<td>moe - dense</td>' in text and '>-2.0 [-20.0, +10.0]</td>' in text
  assert '<td>over 2 seeds</td>' in text
  assert '<td>one seed, over its images</td>' in text


def test_a_pair_without_the_first_attack_shows_its_own(folder):
  """Of an experiment that is not finished."""
  rows = [
    pair('moe', 'clean', 0.0),
    pair('moe', 'pgd linf 1/255', 0.0),
    pair('moe', 'pgd linf 1/255', 0.25, attack='longer'),
    pair('wide', 'clean', 0.0, attack='longer'),
    pair('wide', 'pgd linf 1/255', 0.125, attack='longer'),
  ]
  path = folder / 'comparisons.json'
  write_json(path, rows)
  text, _ = shown(folder)
  moe, wide = text.split('class="verdict">')[1:]
  assert 'under pgd linf 1/255 (aa): 50.0% and 50.0%' in moe
  assert 'under pgd linf 1/255 (longer): 62.5% and 50.0%' in wide
  write_json(path, [*rows, pair('hash', 'clean', 0.0)])
  text, _ = shown(folder)
  assert '<caption>3 pairs: accuracy</caption>' in text
  assert '<td>pgd linf 1/255 (longer)</td>' in text


def test_numbers_of_pairs_are_saved_whole(folder):
  text, _ = shown(folder)
  assert 'data-value="[-4.0, 0.0]"' in text  # each seed
  assert 'data-value="0.48"' in text  # the mean of the first


def test_warnings_of_all_runs_are_shown(folder, save_run, tmp_path):
  for name in ('run2', 'run16'):
    path = folder / name / 'results.json'
    found = json.loads(path.read_text())
    write_json(path, found | {'warnings': [f'gradients mislead {name}']})
  text, lines = shown(folder)
  assert not lines
  for name in ('run2', 'run16'):
    assert f'<b>Warning, {name}:</b> gradients mislead {name}' in text
  path = folder / 'run3' / 'results.json'
  found = json.loads(path.read_text())
  many = [f'number {number}' for number in range(20)]
  write_json(path, found | {'warnings': many})
  text, _ = shown(folder)
  assert 'More warnings: 18' in text and 'run3: number 19' in text


def test_runs_of_no_part_are_left_out(folder, save_run):
  """Those of other models, of which the experiment was not asked last."""
  save_run('other', [0, 1], [0, 9], [0, 1], warnings=['of another model'])
  save_run('run3/attacks/pgd', [0, 1], [0, 9], [0, 1], warnings=['of a part'])
  text, [line] = shown(folder)
  assert 'of another model' not in text and 'of a part' in text
  assert line.startswith('1 runs in') and 'experiment twins' in line


def test_another_run_beside_an_experiment_is_shown(folder, tmp_path_factory):
  other = tmp_path_factory.mktemp('elsewhere') / 'alone'
  shutil.copytree(folder / 'run0', other)
  out = folder / 'report.html'
  assert page.write([folder, other], out) == []
  assert 'Main figure' in out.read_text() and 'alone' in out.read_text()


def test_few_runs_are_shown_too(folder):
  for i in range(4):
    (folder / f'run{i}/results.json').unlink()
  text, lines = shown(folder)
  assert 'run5' in text and 'Main figure' in text
  # The experiment says which pairs are compared, here none of these.
  assert not lines and '(A) against' not in text


@pytest.mark.parametrize(
  ('name', 'text', 'words'),
  [
    ('experiment.json', '{', 'experiment.json cannot be read'),
    ('experiment.json', '{"format": "x"}', "has format 'x'"),
    ('comparisons.json', '[{', 'comparisons.json cannot be read'),
    ('figures/bars.json', '[', 'bars.json cannot be read'),
  ],
)
def test_damage_is_one_line(folder, name, text, words):
  (folder / name).write_text(text)
  html, [line] = shown(folder)
  assert words in line
  assert words in html or 'run3' in html  # the runs are shown instead


def test_an_address_of_an_unknown_kind_is_one_line(folder):
  out = folder / 'report.html'
  lines = page.write([folder, 'nowhere://x/y'], out)
  assert any('unknown kind' in line for line in lines)
  assert 'Main figure' in out.read_text()
