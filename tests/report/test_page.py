import html.parser
import inspect
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest

import vmoe_robust
from tests.report.conftest import CONDITION
from vmoe_robust.config import UserError
from vmoe_robust.report import __main__ as command
from vmoe_robust.report import page, verdicts, writing
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.page.runs import Problems
from vmoe_robust.report.results import read_results
from vmoe_robust.report.verdicts import judged_of

_VOID = {'meta', 'link', 'input', 'img', 'br'}
_ADDRESSES = ('src', 'href', 'action', 'data', 'poster', 'srcset')


class Reader(html.parser.HTMLParser):
  """Tags that do not match, addresses, ids and the text of each cell."""

  def __init__(self, text):
    super().__init__()
    self.open, self.wrong, self.addresses = [], [], []
    self.ids, self.cells, self.tags = [], [], set()
    self.feed(text)
    self.close()
    self.wrong += self.open

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.addresses += [v for k, v in attrs if k in _ADDRESSES]
    self.ids += [v for k, v in attrs if k == 'id']
    if tag == 'td':
      self.cells.append(['', dict(attrs)])
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.wrong.append(tag)

  def handle_data(self, data):
    if self.open and self.open[-1] == 'td':
      self.cells[-1][0] += data


def made(*folders):
  out = folders[0].parent / 'report.html'
  lines = page.write(folders, out)
  return out.read_text(), lines


def rows_of(text, caption):
  """The cells of the table of a caption, as text."""
  inner = text[text.index(f'<caption>{caption}</caption>') :]
  body = re.search(r'<tbody>(.*?)</tbody>', inner, re.S)[1]
  return [
    [re.sub(r'\s+', ' ', c).strip() for c in re.findall(r'>([^<]*)</td>', row)]
    for row in body.split('</tr>')[:-1]
  ]


def test_the_numbers_are_those_of_the_results(save_run):
  text, lines = made(save_run('a', after=[0, 1, 2, 9]))
  assert lines == []
  # Three of four stand, and Wilson's interval of that.
  assert '75.0% [30.1, 95.4]' in text
  assert 'data-value="0.75" data-low="0.300' in text
  assert 'data-value="0.123456789" data-low="0.1" data-high="0.2"' in text
  assert ['a', 'pgd', '16/255', '4', '75.0% [30.1, 95.4]'] == rows_of(
    text, 'Robust accuracy, linf'
  )[1][:5]
  sentence = re.sub(r'<[^>]*>|\s+', ' ', text.split('class="verdict">')[1])
  sentence = ' '.join(sentence.split())
  assert sentence.startswith(
    'a is right on 100.0% [51.0, 100.0] of 4 images of digits test, and at '
    'linf 16/255 on 75.0% [30.1, 95.4] under pgd. '
  )
  assert 'ViT of 4 layers, 64 wide, 12,345 parameters, step 7' in text


def test_more_than_two_models_are_a_table(save_run):
  """A row each, and beside a number of other images how many these are."""
  folders = [
    save_run(name, [0, 1, 2 if name == 'a' else 9, 9], weights__checksum=name)
    for name in 'abc'
  ]
  assert '<caption>Accuracy of' not in made(*folders[:2])[0]
  of_c = dict(weights__checksum='c', data__examples=2)
  folders.append(save_run('d', [0, 9], labels=(0, 1), **of_c))
  results = json.loads((folders[-1] / 'results.json').read_text())
  results['rows'][0]['attack'] = 'square'
  (folders[-1] / 'results.json').write_text(json.dumps(results))
  text, _ = made(*folders)
  assert 'is right on' not in text
  clean = '100.0% [51.0, 100.0]'
  few = '50.0% [9.5, 90.5] (2 images of digits test)'
  caption = 'Accuracy of 3 models at linf 16/255 on 4 images of digits test'
  assert rows_of(text, caption) == [
    ['a', '75.0% [30.1, 95.4]', '', clean, '12,345'],
    ['b', '50.0% [15.0, 85.0]', '', clean, '12,345'],
    ['c', '50.0% [15.0, 85.0]', few, clean, '12,345'],
  ]


def test_the_page_is_whole_and_needs_no_network(save_run):
  figure = {
    'name': 'f',
    'title': 'Theirs',
    'x_label': 'x',
    'y_label': 'y',
    'lines': [
      {'label': 'l', 'x': [0, 1], 'y': [0.2, None], 'low': [0.1, None]}
      | {'high': [0.3, None], 'panel': 'p', 'dashed': True}
    ],
  }
  folder = save_run(
    'a', [0, 1, 2, 9], files__figures=[{'name': 'f', 'title': 'Theirs'}
    | {'data': 'f.json', 'picture': None}], asked__mode='study',
  )  # fmt: skip
  (folder / 'f.json').write_text(json.dumps(figure))
  (folder / 'metrics.jsonl').write_text('{"step": 1, "accuracy": 0.5}\n{"st')
  text, lines = made(folder, save_run('b', [0, 1, 9, 9]))
  assert lines == []
  found = Reader(text)
  assert found.wrong == []
  assert len(set(found.ids)) == len(found.ids)
  assert all(a.startswith(('#', 'data:')) for a in found.addresses)
  assert not {'iframe', 'object', 'embed'} & found.tags
  assert not re.search(r'url\(|@import|fetch\(|https?:', text)
  for link in (a for a in found.addresses if a.startswith('#')):
    assert link[1:] in found.ids
  assert len(text) < 100_000


def test_names_from_files_are_text(save_run):
  evil = '<script>alert(1)</script>'
  folder = save_run(
    '<img src=x>', [0, 1, 2, 9], data__name=evil, warnings=[evil],
    weights__checkpoint=evil, summary__attack=evil,
    files__figures=[{'name': 'e', 'title': evil, 'data': 'e.npz'}],
  )  # fmt: skip
  image = np.zeros((1, 2, 2, 1), np.float32)
  np.savez(
    folder / 'e.npz', images=image, x_adv=image, before=[evil], after=['b']
  )
  text, lines = made(folder)
  assert lines == []
  assert evil not in text and '<img src=x' not in text
  assert text.count('<script>') == 1
  assert '&lt;script&gt;alert(1)&lt;/script&gt; becomes b' in text


def test_pairs_are_counted(save_run):
  # Of six images 2 are right for both, 2 for A, 1 for B, 1 for neither.
  labels = list(range(6))
  a = save_run(
    'a', [0, 1, 2, 3, 9, 9], labels=labels, asked__settings__steps=20
  )  # fmt: skip
  b = save_run(
    'b', [0, 1, 9, 9, 4, 9], labels=labels, weights__checksum='b',
    asked__settings__steps=40, asked__settings__eps=[1],
    before=[0, 1, 2, 3, 4, 9],
  )  # fmt: skip
  text, lines = made(a, b)
  assert lines == []
  assert 'Asked of A and B otherwise: steps 20 and 40.' in text
  assert 'under pgd of 40 steps' in text
  clean, attacked = rows_of(text, 'a (A) against b (B)')
  assert clean[:6] == ['clean', '6', '5', '1', '0', '0']
  assert attacked[1:6] == ['6', '2', '2', '1', '1']
  assert attacked[6].startswith('+16.7 [') and attacked[7] == '1'


@pytest.mark.parametrize(
  ('other', 'words'),
  [
    (dict(data__split='test[:4]'), 'other images, digits test and digits test'),
    (dict(labels=(0, 1, 2, 4), after=[0, 1, 2, 4]), 'have other labels'),
    (dict(labels=(0, 1, 2), after=[0, 1, 2]), 'other images, 4 and 3 under'),
    (
      dict(rows=[{'condition': 'x', 'eps': 0.1, 'norm': 'linf'}
                 | {'robust_accuracy': {'value': 1, 'interval': None, 'n': 1}}
                 | {'attack': 'x'}]),
      '1 of 1 pairs of runs have no condition in both',
    ),
    (
      dict(summary__clean_accuracy={'value': 0.5, 'interval': [0, 1], 'n': 4}),
      "have 1 right under 'clean' and results.json says 0.5",
    ),
    (dict(more={'index': np.array([0, 1, 1, 3])}), 'an image is twice'),
  ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(save_run, other, words):
  other = {'after': [0, 1, 2, 9], 'weights__checksum': 'b'} | other
  text, lines = made(save_run('a', [0, 1, 2, 9]), save_run('b', **other))
  (line,) = lines
  assert words in line and '\n' not in line
  assert 'a (A) against b (B)' not in text
  assert text.count('Left out:') == 1


def test_seeds_have_a_mean_and_their_own_dots(save_run):
  runs = [
    save_run(f'seed{i}', after, weights__checksum=str(i), asked__config__seed=i)
    for i, after in enumerate(([0, 1, 2, 3], [0, 1, 2, 9], [0, 1, 9, 9]))
  ]
  text, _ = made(*runs)
  _, attacked = rows_of(text, 'Over 3 seeds, seed0 and the like')
  # Mean 0.75, deviation 0.25, t of two degrees of freedom 4.303: +- 62 points.
  assert attacked[1] == '75.0% [12.9, 100.0]'
  assert [c.split()[0] for c in attacked[2:]] == ['100.0%', '75.0%', '50.0%']
  assert text.count('class="dot"') == 6
  assert rows_of(text, 'Fields of the configs that differ') == [
    ['config.seed', '0', '1', '2']
  ]


def test_what_is_not_known_is_shown_so(save_run):
  nothing = {'value': None, 'interval': None, 'n': 4}
  folder = save_run('a', [0, 1, 2, 9])
  path = folder / 'results.json'
  found = json.loads(path.read_text())
  found['rows'][0] |= {'loss_after': nothing, 'odd': float('nan')}
  found['rows'].append(found['rows'][0] | {'robust_accuracy': nothing})
  path.write_text(json.dumps(found))
  text, lines = made(folder)
  assert lines == []
  assert [row[4] for row in rows_of(text, 'Robust accuracy, linf')][2] == '-'
  assert 'data-value="NaN"' not in text and '>nan</td>' in text


def test_a_run_of_no_images(save_run):
  empty = save_run('a', after=[], labels=[])
  text, lines = made(empty, save_run('b', [], labels=[], weights__checksum='b'))
  assert lines == ['the comparison of a with b: they have no images']
  assert rows_of(text, 'Robust accuracy, linf')[1][3:5] == ['0', '-']


def test_functions_of_no_file_are_each_a_model_of_its_own(save_run):
  none = dict(weights__checkpoint=None, weights__step=None)
  runs = [
    save_run(name, after, weights__checksum=None, **none)
    for name, after in (('good', [0, 1, 2, 3]), ('bad', [9, 9, 9, 9]))
  ]
  text, lines = made(*runs)
  assert lines == [] and text.count('is right on') == 2
  (_, attacked) = rows_of(text, 'good (A) against bad (B)')
  assert attacked[1:6] == ['4', '0', '4', '0', '0']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(asked__config__num_selected=1), '8 experts, 1 a token'),
    (dict(asked__experts='capacity'), '2 a token, their capacity limited'),
  ],
)
def test_the_same_weights_used_otherwise_are_another_model(
  save_run, changes, words
):
  sparse = {'layers': 4, 'hidden': 64, 'experts': 8, 'moe_every': 2}
  sparse['router'] = {'name': 'top_k', 'selected': 2}
  own = dict(asked__config__model=sparse)
  runs = (
    save_run('a', [0, 1, 2, 3], **own),
    save_run('b', [0, 9, 9, 9], before=[0, 1, 9, 9], **own | changes),
  )
  text, lines = made(*runs)
  assert lines == [] and text.count('is right on') == 2
  assert '8 experts, 2 a token' in text and words in text
  assert 'Asked of A and B otherwise: ' in text


@pytest.mark.parametrize(
  ('router', 'words'),
  [
    ({'name': 'soft', 'selected': 1, 'slots': 2}, '8 experts, 2 slots each'),
    (
      {'name': 'expert_choice', 'selected': 1, 'capacity_factor': 1.05},
      '8 experts, which choose their tokens, about 1.05 a token',
    ),
  ],
)
def test_experts_are_told_by_their_router(save_run, router, words):
  model = {'experts': 8, 'moe_every': 2, 'router': router}
  text, _ = made(save_run('a', [0, 1, 2, 3], asked__config__model=model))
  assert words in text and '1 a token' not in text


def test_two_steps_or_copies_of_one_training_are_no_seeds(save_run):
  one = dict(asked__config__seed=0)
  first = save_run('first', [0, 1, 2, 9], **one)
  step = dict(weights__step=8, weights__checksum='later')
  assert 'Over 2 seeds' not in made(
    first, save_run('later', [0, 1, 9, 9], **one, **step)
  )[0]  # fmt: skip
  copy = dict(weights__checkpoint='elsewhere')
  other = dict(asked__config__seed=1, weights__checksum='other')
  runs = [first, save_run('copy', [0, 1, 2, 9], **one, **copy)]
  runs += [save_run('other', [0, 1, 9, 9], **other)]
  assert 'Over 3 seeds' not in made(*runs)[0]
  assert 'Over 2 seeds' in made(*runs)[0]


@pytest.mark.parametrize(
  ('prints', 'same'),
  [(('x', 'y'), False), (('x', 'x'), True), (('x', None), True)],
)
def test_examples_are_known_by_their_fingerprint(save_run, prints, same):
  """As far as it is there: older results have none."""
  runs = [
    save_run(
      f'seed{i}', after, weights__checksum=str(i), asked__config__seed=i,
      **({'data__fingerprint': prints[i]} if prints[i] else {}),
    )
    for i, after in enumerate(([0, 1, 2, 3], [0, 1, 2, 9]))
  ]  # fmt: skip
  text, lines = made(*runs)
  assert ('Over 2 seeds' in text) == ('(A) against' in text) == same
  assert same or 'other images, x and y' in lines[0]
  one, other = (judged_of(read_results(run))['clean'] for run in runs)
  assert one.is_of_same_images(other) == same
  if not same:
    with pytest.raises(UserError, match='of other images'):
      verdicts.union([one, other])


def test_a_folder_that_was_moved_is_the_same_data(save_run):
  runs = [
    save_run(
      name, [0, 1, 2, 9 if i else 3], data__name='folder',
      data__fingerprint='x', weights__checksum=name,
      asked__config__data={'dir': f'/data/{name}'},
    )
    for i, name in enumerate(('here', 'there'))
  ]  # fmt: skip
  text, lines = made(*runs)
  assert not lines and '(A) against' in text


def test_of_folders_the_directory_is_the_data(save_run):
  runs = [
    save_run(
      name, [0, 1, 2, 9 if i else 3], data__name='folder',
      weights__checksum=name, asked__config__data={'dir': f'/data/{name}'},
    )
    for i, name in enumerate(('photos', 'sketches'))
  ]  # fmt: skip
  text, (line,) = made(*runs)
  assert 'other images, /data/photos and /data/sketches' in line
  assert 'Over 2 seeds' not in text and '(A) against' not in text


def test_studies_under_other_attacks_are_told_apart(save_run):
  def study(name, **attack):
    return save_run(
      name, [0, 1, 2, 9], asked__mode='study', weights__checksum=name,
      asked__name='knobs', rows=[{'condition': CONDITION, 'x': 1}],
      asked__config__attack={'norm': 'linf', 'steps': 40} | attack,
    )  # fmt: skip

  runs = study('a'), study('b', steps=1), study('c', norm='l2')
  text, lines = made(*runs)
  assert 'Asked of A and B otherwise: steps 40 and 1.' in text
  assert len(lines) == 2
  for line in lines:
    assert line.endswith('attacked in other norms, linf and l2')


@pytest.mark.parametrize(
  ('attack', 'settings', 'words'),
  [
    ('pgd', {'steps': 40}, 'under pgd of 40 steps.'),
    ('pgd', {'iterations': 1}, 'under pgd of 1 step.'),
    (
      'pgd',
      {'steps': 40, 'target': 'least_likely', 'auxiliary_weight': 1.0},
      'under pgd of 40 steps, target least_likely, auxiliary weight 1.0.',
    ),
    (
      'autoattack',
      {'steps': 100, 'restarts': 2, 'compute_dtype': 'bfloat16'},
      'under autoattack, compute dtype bfloat16.',
    ),
  ],
)
def test_an_attack_is_named_with_what_makes_it_another(
  save_run, attack, settings, words
):
  folder = save_run('a', [0, 1, 2, 9], asked__settings=settings)
  path = folder / 'results.json'
  found = json.loads(path.read_text())
  found['rows'][0]['attack'] = attack
  path.write_text(json.dumps(found))
  text, _ = made(folder)
  shown = ' '.join(re.sub('<[^>]*>', '', text).split())
  assert words in shown


def test_values_of_a_list_are_saved_as_they_are(save_run):
  more = {'condition': CONDITION, 'counts': [12345, 6], 'p': [0.0396123]}
  text, _ = made(save_run('a', [0, 1, 2, 9], asked__mode='study', rows=[more]))
  assert 'data-value="[12345, 6]"' in text
  assert 'data-value="0.0396123"' in text


def test_damage_and_files_of_others_are_one_line_each(save_run, tmp_path):
  good = save_run('good', [0, 1, 2, 9])
  damaged = save_run('damaged', [0, 1, 2, 9])
  (damaged / 'results.json').write_text('{"format": ')
  foreign = tmp_path / 'foreign.json'
  foreign.write_text('{"accuracy": 1}')
  odd = save_run('odd', [0, 1, 2, 9], asked=[])
  rows = save_run('rows', [0, 1, 2, 9], rows=[{'robust_accuracy': 3}])
  figure = save_run('figure', [0, 1, 2, 9], files__figures=[
    {'name': 'x', 'title': 't', 'data': '../good/results.json'},
    {'name': 'y', 'title': 't', 'data': 'no.json'}],
    asked__mode='study')  # fmt: skip
  empty = tmp_path / 'empty'
  empty.mkdir()
  text, lines = made(
    good, damaged, foreign, odd, rows, figure, empty, tmp_path / 'missing'
  )
  assert [any(w in line for line in lines) for w in (
    'damaged/results.json is damaged: it is no JSON',
    "foreign.json has no format='vmoe_robust results'",
    "odd/results.json is damaged: 'asked' is no object",
    "rows/results.json is damaged: one of 'rows' has no 'condition'",
    "figure 'x' of figure: '../good/results.json' is outside the folder",
    "figure 'y' of figure: no.json is missing; copy the whole folder",
    'empty has no results.json, nor has a folder below it',
    'missing cannot be read',
  )] == 8 * [True], lines  # fmt: skip
  assert len(lines) == 8 and '75.0% [30.1, 95.4]' in text
  assert Reader(text).wrong == []


def test_runs_below_a_folder_are_found(save_run, tmp_path):
  save_run('many/x10/a', [0, 1, 2, 9])
  save_run('many/x9/a', [0, 1, 2, 3])
  save_run('many/x9/a/checkpoints/3', [0, 1, 2, 3])
  text, _ = made(tmp_path / 'many')
  assert [row[0] for row in rows_of(text, 'Robust accuracy, linf')] == [
    *2 * ['x9/a'], *2 * ['x10/a']
  ]  # fmt: skip


def test_the_same_attack_of_many_runs_is_not_in_their_names(save_run):
  folders = [save_run(f'{run}/attacks/pgd', [0, 1, 2, 9]) for run in 'ab']
  names = lambda *found: [run.name for run in page.find(found, Problems())]
  assert names(*folders) == ['a', 'b']
  assert names(folders[0]) == ['pgd']
  other = save_run('b/attacks/square', [0, 1, 2, 9])
  assert names(*folders, other) == [
    'a/attacks/pgd', 'b/attacks/pgd', 'b/attacks/square'
  ]  # fmt: skip


def test_nothing_to_report_is_an_error(tmp_path):
  with pytest.raises(UserError, match='no run to report of: path=.*gone'):
    page.write([tmp_path / 'gone'], tmp_path / 'report.html')
  assert not (tmp_path / 'report.html').exists()


def test_an_entry_of_robustbench_takes_the_whole_attack(save_run):
  def entry(name, **changes):
    whole = dict(
      data__name='cifar10', data__examples=10_000, summary__attack='autoattack',
      asked__config__data={'image_size': 32},
    )  # fmt: skip
    folder = save_run(name, [0, 1, 2, 9], **(whole | changes))
    path = folder / 'results.json'
    found = json.loads(path.read_text())
    found['rows'][0]['eps'] = 8 / 255
    path.write_text(json.dumps(found))
    (run,) = page.find([folder], Problems())
    text = page.reproduce.robustbench(run)
    return text and json.loads(text)

  assert entry('whole') == dict.fromkeys(
    ('link', 'name', 'authors', 'additional_data', 'venue')
  ) | {
    'number_forward_passes': 1,
    'dataset': 'cifar10',
    'architecture': 'ViT-4-64',
    'eps': '8/255',
    'clean_acc': '100.00',
    'reported': '75.00',
    'autoattack_acc': '75.00',
  }
  assert entry('few', data__examples=9_999) is None
  assert entry('short', summary__attack='autoattack, 20 steps') is None
  assert entry('capacity', asked__experts='capacity') is None
  assert entry('digits', data__name='digits') is None
  assert entry('train', data__split='train') is None
  assert entry('part', data__split='test[:10000]') is not None
  assert entry('large', asked__config__data={'image_size': 224}) is None
  assert entry('k', asked__config__num_selected=1) is None
  coarse = {'compute_dtype': 'bfloat16'}
  assert entry('coarse', asked__settings=coarse) is None
  model = dict(asked__config__model=coarse)
  assert entry('coarse model', **model) is None
  fine = dict(asked__settings={'compute_dtype': 'float32'})
  assert entry('fine attack', **model, **fine) is not None
  row = {'condition': CONDITION, 'attack': 'pgd', 'norm': 'linf', 'eps': 0.1}
  row['robust_accuracy'] = {'value': 0.75, 'interval': None, 'n': 4}
  for field in ('outside_ball', 'outside_range'):
    for count in (0, 1):
      found = entry(f'{field}{count}', rows=[row, row | {field: count}])
      assert (found is None) == (count == 1)


@pytest.mark.parametrize(
  ('figure', 'pictures', 'cells'),
  [
    (
      {'bars': [{'label': 'one', 'value': 0.5, 'low': 0.25, 'high': None}
                | {'group': 'g'}], 'x_label': 'x'},
      1,
      ['one', 'g', '0.5'],
    ),
    (
      {'values': [[0.25]], 'rows': ['r'], 'columns': ['c'], 'x_label': 'to'}
      | {'y_label': 'from'},
      0,
      ['r', '25.0%'],
    ),
  ],
)  # fmt: skip
def test_figures_of_studies(save_run, figure, pictures, cells):
  folder = save_run(
    's', [0, 1, 2, 9], rows=[{'condition': 'pgd linf 16/255', 'x': 1}],
    asked__mode='study', asked__name='transfer',
    files__figures=[{'name': 'f', 'title': 'T', 'data': 'f.json'}],
  )  # fmt: skip
  (folder / 'f.json').write_text(json.dumps({'title': 'T'} | figure))
  text, lines = made(folder)
  assert lines == []
  assert rows_of(text, 's: T') == [cells]
  inner = text[text.index('id="study-s"') : text.index('id="gallery"')]
  assert inner.count('class="plot"') == pictures
  assert 'each model&#39;s own robust accuracy' in text


def test_many_runs_are_bars_at_one_radius(save_run):
  """Lines of more could not be told apart."""
  runs = [
    save_run(f'r{i}', [0, 1, 2, 9], weights__checksum=f'{i}') for i in range(13)
  ]
  text, _ = made(*runs[:12])
  assert 'Accuracy against the radius, linf, pgd' in text
  text, _ = made(*runs)
  assert 'Accuracy against the radius' not in text
  assert 'Accuracy at linf 16/255, pgd' in text
  assert 'r12: 75.0% [30.1, 95.4]</text>' in text
  assert len(rows_of(text, 'Robust accuracy, linf')) == 2 * 13


def test_the_same_warning_of_several_runs_is_said_once(save_run):
  runs = [
    save_run(name, [0, 1, 2, 9], weights__checksum=name, warnings=said)
    for name, said in zip('abc', (['weak'], ['odd'], ['weak']), strict=True)
  ]
  text, _ = made(*runs)
  assert text.count('weak') == 1
  assert '<b>Warning, a and 1 more:</b> weak' in text
  assert '<summary>Which</summary>a, c</details>' in text
  assert '<b>Warning, b:</b> odd' in text


def test_lines_name_the_attack_where_it_differs(save_run):
  one = save_run('a', [0, 1, 2, 9])
  text, _ = made(one)
  assert 'Accuracy against the radius, linf, pgd' in text
  assert 'a (pgd)' not in text
  text, _ = made(one, save_run('b', [0, 1, 9, 9], summary__attack='fgsm'))
  assert 'Accuracy against the radius, linf<' in text
  assert 'a (pgd)' in text and 'b (fgsm)' in text


def test_a_large_page_is_without_single_runs(save_run, monkeypatch):
  asked = {'asked__config': {'attack': {'norm': 'linf'}}}
  runs = [save_run(f'r{i}', [0, 1, 2, 9], **asked) for i in range(3)]
  line = {'step': 1, 'accuracy': 0.5, 'robust_accuracy/0.0627451': 0.25}
  (runs[0] / 'metrics.jsonl').write_text(json.dumps(line))
  whole, lines = made(*runs)
  assert 'Training of r0' in whole and lines == []
  assert 'held out, eps 16/255' in whole
  monkeypatch.setattr(page, '_MOST_BYTES', 10_000)
  text, (line,) = made(*runs)
  assert line.startswith('the numbers of each single run, with which')
  assert 'Training of r0' not in text and 'All numbers of' not in text
  caption = 'Robust accuracy, linf'
  assert rows_of(text, caption) == rows_of(whole, caption)


def test_a_run_writes_its_page_and_ends_without_it(tmp_path, monkeypatch):
  names = ('index', 'label', 'prediction_after')
  columns = {name: np.arange(2) for name in names}
  columns['condition'] = np.array(['c', 'c'])
  found = Findings(columns, [], [{'condition': 'c', 'x': 0.125}], {})
  weights = ('checkpoint', 'step', 'checksum', 'parameters', 'flops_per_image')
  asked = {'mode': 'study', 'name': 's', 'experts': None, 'settings': {}}
  results = writing.assemble(
    found,
    asked=asked | {'seed': 0, 'config': None},
    weights=dict.fromkeys(weights),
    data={'name': 'random', 'split': ''},
  )
  writing.write(tmp_path, results, found)
  assert '>0.125</td>' in (tmp_path / 'report.html').read_text()

  def fails(*_):
    raise RuntimeError('no page')

  monkeypatch.setattr(page, 'write', fails)
  writing.write(tmp_path, results, found)  # is a warning
  assert (tmp_path / 'results.json').exists()


def test_the_command(save_run, tmp_path):
  folder = save_run('a', [0, 1, 2, 9], command='python -m x --a="<b>"')
  command = [sys.executable, '-m', 'vmoe_robust.report', folder]
  done = subprocess.run(
    [*command, 'gone', '--out=there.html'], cwd=tmp_path, capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  assert done.stdout.strip() == str(tmp_path / 'there.html')
  (line,) = done.stderr.splitlines()
  assert line.startswith('left out: path=gone cannot be read')
  text = (tmp_path / 'there.html').read_text()
  assert '>python -m x --a=&#34;&lt;b&gt;&#34;</pre>' in text


@pytest.mark.parametrize(
  ('out', 'words'),
  [
    ('there', '--out=there is a folder; name a file, such as --out=/'),
    ('a/results.json/x', '--out=a/results.json/x cannot be written ('),
    ('/proc/x.html', '--out=/proc/x.html cannot be written ('),
  ],
)
def test_a_page_that_cannot_be_written_is_one_line(
  save_run, tmp_path, monkeypatch, out, words
):
  save_run('a', [0, 1, 2, 9])
  (tmp_path / 'there').mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(command, '_OUT', types.SimpleNamespace(value=out))
  with pytest.raises(UserError) as caught:
    command.main(['report', 'a'])
  assert str(caught.value).startswith(words)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('paths', [(), (['a', 'b'],)])
def test_a_notebook_is_told_what_compare_takes(paths):
  compare = inspect.unwrap(vmoe_robust.compare)  # without the check of types
  with pytest.raises(UserError, match='compare takes folders of runs'):
    compare(*paths)


def test_a_notebook_shows_the_page(save_run, tmp_path):
  folder = save_run('a', [0, 1, 2, 9])
  found = vmoe_robust.compare(folder, tmp_path / 'gone')
  text, _ = made(folder)
  assert found.html.count('Left out:') == len(found.problems) == 1
  shown = Reader(found._repr_html_())
  assert (shown.wrong, shown.tags) == ([], {'iframe'})
  assert rows_of(found.html, 'Robust accuracy, linf') == rows_of(
    text, 'Robust accuracy, linf'
  )
