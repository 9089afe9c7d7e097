"""Which runs a page is of, and what damage leaves of it."""

import json
import re
import zipfile

import pytest
from etils import epath

from vmoe_robust.report import page
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.results import Results


def names_of(*paths):
  return [run.name for run in page.find(paths, Problems())]


@pytest.fixture
def experiment(save_run, tmp_path):
  """Of two runs whose training attacked at its end, and one that did not."""
  for run in ('a', 'b'):
    save_run(f'x/{run}', [0, 1, 2, 9], asked__mode='train')
  for run in ('a', 'b', 'c'):
    save_run(f'x/{run}/attacks/pgd', [0, 1, 2, 9])
  save_run('x/a/studies/load', [0, 1, 2, 9], asked__mode='study')
  for own in ('checkpoints/3', 'figures', 'x_adv', 'tensorboard', 'profile'):
    save_run(f'x/a/{own}', [0, 1, 2, 9])
  return tmp_path / 'x'


def test_results_below_a_run_that_has_its_own_are_found_once(experiment):
  names = ['a', 'a/attacks/pgd', 'a/studies/load', 'b', 'b/attacks/pgd']
  names.append('c/attacks/pgd')
  assert names_of(experiment) == names
  assert names_of(experiment, experiment / 'b') == names
  assert names_of(experiment / 'a') == ['a', 'pgd', 'load']
  # Its file alone is the run alone, as in the page that a run writes of itself.
  assert names_of(experiment / 'a' / 'results.json') == ['a']


@pytest.mark.parametrize('damage', ['empty', 'compressed', 'unknown'])
def test_a_damaged_archive_of_images_is_one_line(save_run, damage):
  about = [{'name': 'e', 'title': 'e', 'data': 'e.npz'}]
  folder = save_run('a', [0, 1, 2, 9], files__figures=about)
  path = folder / 'e.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('images.npy', bytes(1000))
  content = bytearray(path.read_bytes())
  start = content.index(b'images.npy') + len('images.npy')
  if damage == 'empty':
    content.clear()
  elif damage == 'compressed':
    content[start] = 0xFF
  else:  # a way to compress that no program knows
    content[8] = content[content.index(b'PK\1\2') + 10] = 77
  path.write_bytes(content)
  problems = Problems()
  text = page.render(page.find([folder], problems), problems)
  (line,) = problems.lines
  assert 'of a' in line and '75.0% [30.1, 95.4]' in text


def test_warnings_of_another_form_are_one_line(save_run):
  odd = save_run('odd', [0, 1, 2, 9], warnings=[{}])
  good = save_run('good', [0, 1, 9, 9], warnings=['weak', 'weak'])
  found = page.compare(odd, good)
  (line,) = found.problems
  assert line.startswith('the warnings of odd: TypeError')
  assert '<b>Warning, good:</b> weak' in found.html
  assert '75.0% [30.1, 95.4]' in found.html  # of the odd one


def test_as_many_experts_as_in_training_are_no_other_model(save_run):
  def run(name, asked, selected):
    model = {'experts': 8, 'moe_every': 2, 'router': {'selected': selected}}
    config = {'num_selected': asked, 'model': model}
    folder = save_run(name, [0, 1, 2, 9], asked__config=config)
    return page.find([folder], Problems())[0].model

  # What was asked for is what the router of the config has, too.
  trained, same, other = run('a', 0, 2), run('b', 2, 2), run('c', 1, 1)
  assert trained == same != other


@pytest.mark.parametrize('wrong', [0.5, float('nan')])
def test_numbers_that_records_contradict_are_nowhere(save_run, wrong):
  good, bad = (save_run(name, [0, 1, 2, 9]) for name in ('good', 'bad'))
  path = bad / 'results.json'
  found = json.loads(path.read_text())
  found['rows'][0]['robust_accuracy']['value'] = wrong
  path.write_text(json.dumps(found))
  problems = Problems()
  assert [run.name for run in page.find([good, bad], problems)] == ['good']
  assert problems.lines == [
    "bad: the records have 0.75 right under 'pgd linf 16/255' and results.json "
    f'says {wrong}: they are of different runs'
  ]
  (bad / 'records.parquet').unlink()  # then nothing contradicts them
  assert len(page.find([good, bad], Problems())) == 2


def test_no_two_names_have_one_id():
  names = ('a b', 'a-b', 'a_b', 'a/b', 'a.2f.b', 'a.b', '\u00e9', '\u00e8')
  ids = [Run(name, Results({}, epath.Path())).id for name in names]
  assert len(set(ids)) == len(names)
  assert all(re.fullmatch(r'[A-Za-z0-9_.-]+', one) for one in ids)


def test_studies_that_attack_nothing_differ_in_no_attack(save_run):
  def compared(name):
    folders = [
      save_run(
        f'{name}/{norm}', [0, 1, 2, 9], asked__mode='study', asked__name=name,
        asked__config__attack={'norm': norm}, weights__checksum=norm,
      )
      for norm in ('linf', 'l2')
    ]  # fmt: skip
    for folder in folders:
      path = folder / 'results.json'
      found = json.loads(path.read_text())
      row = found['rows'][0]
      row['accuracy'] = row.pop('robust_accuracy')
      path.write_text(json.dumps(found))
    return page.compare(*folders).problems

  assert compared('corruptions') == []
  [problem] = compared('forced_expert')
  assert 'attacked in other norms, linf and l2' in problem
