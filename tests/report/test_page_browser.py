"""The page in a browser; CONTRIBUTING.md says how to install one.

Without playwright and Chromium, of the system or its own, it is skipped.
"""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vmoe_robust.report import page

# Of the system; None: what `playwright install chromium` left.
_CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chrome'))), None)
# `npm install axe-core` in the root of the working copy puts it there.
_AXE = pathlib.Path(__file__).parents[2] / 'node_modules/axe-core/axe.min.js'
_UNFOLD = 'document.querySelectorAll("details").forEach(d => d.open = true)'

sync_api = pytest.importorskip('playwright.sync_api')


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    if _CHROMIUM is None and not os.path.exists(
      playwright.chromium.executable_path
    ):
      pytest.skip('no Chromium')
    found = playwright.chromium.launch(
      executable_path=_CHROMIUM, args=['--no-sandbox']
    )
    yield found
    found.close()


@pytest.fixture
def report(save_run, tmp_path):
  """Of two runs on the same images, and of a study with a long name."""
  change = {'routing_change/encoderblock_1': np.array([0, 0.5, 0.5, 0])}
  about = [{'name': 'e', 'title': 'e', 'data': 'e.npz'}]
  a = save_run('a', [0, 1, 8, 9], more=change, files__figures=about)
  images = np.zeros((4, 2, 2, 1), np.float32)
  experts = np.zeros((4, 2, 4, 1), int)
  experts[1:3, 0, 2] = 5  # in block 1, one of four patches of two images
  np.savez(
    a / 'e.npz', images=images, x_adv=images + 0.01, before=list('0123'),
    after=list('0189'), index=np.arange(4), condition='pgd linf 16/255',
    blocks=np.array(['encoderblock_1', 'encoderblock_3']), class_token=False,
    experts_before=np.zeros((4, 2, 4, 1), int),
    experts_after=experts,
  )  # fmt: skip
  b = save_run('b', [0, 1, 2, 9], weights__checksum='b', warnings=['weak'])
  rows = [{'condition': 'c', 'x': i, 'text': 'long_' * 30} for i in range(12)]
  study = save_run(
    'study' + '_long' * 20, [0, 1, 2, 9], asked__mode='study', rows=rows,
    files__figures=[{'name': 'f', 'title': 'T', 'data': 'f.json'}, *about],
  )  # fmt: skip
  np.savez(
    study / 'e.npz', images=images[:1], x_adv=images[:1], before=['0'],
    after=['0'],
  )  # fmt: skip
  line = {'label': 'line', 'x': [0, 1], 'y': [0, 1], 'low': [0, 1]}
  line['high'] = [0.5, 1]
  figure = {'title': 'T', 'x_label': 'x', 'y_label': 'y', 'lines': [line]}
  (study / 'f.json').write_text(json.dumps(figure))
  path = tmp_path / 'report.html'
  assert page.write([a, b, study], path) == []
  return path.as_uri()


@pytest.fixture
def opened(browser, report):
  """A function that opens the page at a width; all it says is an error."""
  said, pages = [], []

  def open_page(width, **settings):
    size = {'width': width, 'height': 800}
    found = browser.new_page(viewport=size, **settings)
    found.on('console', lambda message: said.append(message.text))
    found.on('pageerror', lambda error: said.append(str(error)))
    found.on('requestfailed', lambda request: said.append(request.url))
    found.goto(report)
    pages.append(found)
    return found

  yield open_page
  for found in pages:
    found.close()
  assert said == []


@pytest.mark.parametrize('width', [360, 768, 1280])
def test_nothing_is_wider_than_the_window(opened, width):
  found = opened(width)
  found.evaluate(_UNFOLD)
  assert found.evaluate('document.documentElement.scrollWidth') == width


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_no_serious_fault_of_access(opened, scheme):
  if not _AXE.exists():
    pytest.skip('no axe-core')
  found = opened(768, color_scheme=scheme)
  found.evaluate(_UNFOLD)
  found.add_script_tag(path=_AXE)
  faults = found.evaluate('axe.run().then(r => r.violations)')
  assert [
    (fault['id'], fault['nodes'][0]['html'])
    for fault in faults
    if fault['impact'] in ('serious', 'critical')
  ] == []


def test_names_are_no_formulas_and_columns_are_told_apart(
  browser, save_run, tmp_path
):
  runs = [
    save_run(
      name, [0, 1, 2, after], weights__checksum=name, asked__config__seed=seed,
    )
    for seed, (name, after) in enumerate((('=1+2', 9), ('mean', 3)))
  ]  # fmt: skip
  page.write(runs, tmp_path / 'report.html')
  found = browser.new_page()
  found.goto((tmp_path / 'report.html').as_uri())
  found.evaluate(_UNFOLD)
  table = found.locator('.table', has_text='Over 2 seeds').last

  def saved(kind):
    with found.expect_download() as download:
      table.get_by_role('button', name=kind).click()
    download.value.save_as(tmp_path / 'saved')
    return (tmp_path / 'saved').read_text()

  first = json.loads(saved('JSON'))[1]
  assert (first['mean'], first['=1+2'], first['mean #2']) == (0.875, 0.75, 1)
  assert ",'=1+2," in saved('CSV').splitlines()[0]
  found.close()


def test_tables_are_sorted_filtered_and_saved(opened, tmp_path):
  found = opened(1280)
  table = found.locator('.table', has_text='Robust accuracy, linf').first
  column = lambda: [
    text.split(' ')[0]
    for text in table.locator(
      'tbody tr:visible td:nth-child(5)'
    ).all_inner_texts()
  ]
  assert column() == ['100.0%', '50.0%', '100.0%', '75.0%']
  head = table.get_by_role('button', name='accuracy')
  head.press('Enter')  # by keyboard
  assert column() == ['50.0%', '75.0%', '100.0%', '100.0%']
  head.click()
  assert column() == ['100.0%', '100.0%', '75.0%', '50.0%']
  assert head.locator('..').get_attribute('aria-sort') == 'descending'

  def saved(kind):
    with found.expect_download() as download:
      table.get_by_role('button', name=kind).click()
    path = tmp_path / 'saved'
    download.value.save_as(path)
    return path.read_text()

  head.click()
  first = json.loads(saved('JSON'))[0]
  named = [first[name] for name in ('run', 'accuracy', 'accuracy n')]
  assert named == ['a', 0.5, 4]
  assert saved('CSV').startswith('run,attack,eps,images,accuracy,accuracy low,')
  assert '50.0\\% [15.0, 85.0] &' in saved('LaTeX')

  found.locator('summary', has_text='All numbers of study').click()
  rows = found.locator('.table', has_text='All numbers of study').last
  rows.get_by_label('Filter').fill('11')
  assert rows.locator('tbody tr:visible').count() == 1


def test_numbers_are_sorted_as_numbers_and_text_comes_last(
  browser, save_run, tmp_path
):
  cells = [[0.37, 0.0028], '10', 'none', 0.05, [], '1e-05', '0.0313725', None]
  cells.append('-2')
  rows = [{'condition': 'c', 'x': x, 'text': str(x)} for x in cells]
  rows[0]['text'] = [0.37, 0.0028]
  folder = save_run('s', [0, 1, 2, 9], asked__mode='study', rows=rows)
  page.write([folder], tmp_path / 'report.html')
  found = browser.new_page()
  found.goto((tmp_path / 'report.html').as_uri())
  found.evaluate(_UNFOLD)
  table = found.locator('.table', has_text='All numbers of s').last
  numbers = ['-2', '1e-05', '0.0313725', '0.05', '0.37, 0.0028', '10']
  for place, last in ((2, ['', 'none', '-']), (3, ['[]', 'none', 'None'])):
    head = table.locator(f'th:nth-child({place}) button')
    column = table.locator(f'tbody td:nth-child({place})')
    head.click()
    assert column.all_inner_texts()[:6] == numbers
    assert sorted(column.all_inner_texts()[6:]) == sorted(last)
    head.click()
    assert column.all_inner_texts()[:6] == numbers[::-1]
    assert sorted(column.all_inner_texts()[6:]) == sorted(last)
  with found.expect_download() as download:
    table.get_by_role('button', name='CSV').click()
  download.value.save_as(tmp_path / 'saved')
  # A negative number is no formula, in a column of text either.
  assert 'c,-2,-2' in (tmp_path / 'saved').read_text()
  found.close()


def test_the_gallery_is_filtered_by_keyboard(opened):
  found = opened(360)
  shown = lambda: found.locator(
    '.gallery > li:visible > p:first-of-type'
  ).all_inner_texts()
  assert len(shown()) == 5  # and the study's
  found.get_by_label('all', exact=True).focus()
  texts = []
  for _ in range(4):
    found.keyboard.press('ArrowDown')
    texts.append([text.split(':')[0] for text in shown()])
  assert texts == [
    ['image 2', 'image 3'],
    ['image 0', 'image 1'],
    ['image 1'],
    ['image 3'],
  ]
  assert found.locator('#count').inner_text() == '1 image'


def test_of_many_images_those_of_the_first_run_are_shown(
  browser, save_run, tmp_path
):
  images, names = np.zeros((13, 2, 2, 1), np.float32), 13 * ['0']
  kept = dict(images=images, x_adv=images, before=names, after=names)
  about = [{'name': 'e', 'title': 'e', 'data': 'e.npz'}]
  runs = [save_run(name, [0, 1, 2, 9], files__figures=about) for name in 'ab']
  for run in runs:
    np.savez(run / 'e.npz', **kept)
  page.write(runs, tmp_path / 'report.html')
  found = browser.new_page()
  found.goto((tmp_path / 'report.html').as_uri())
  seen = lambda: found.locator('.gallery > li:visible').count()
  assert seen() == 13 and found.locator('#count').inner_text() == '13 images'
  found.locator('#of-run').select_option('all runs')
  assert seen() == 26
  found.close()


def test_marks_are_those_of_the_chosen_block(opened):
  found = opened(1280)
  marked = lambda: found.evaluate(
    '[...document.querySelectorAll(".gallery svg")].map(s => [...s'
    '.querySelectorAll(".mark use")].filter(u => u.getBBox().width > 0 &&'
    'getComputedStyle(u).display !== "none").length)'
  )
  # Four images, of each the clean one and x_adv; the second and the third have
  # a patch of block 1.
  assert marked() == [0, 0, 1, 1, 1, 1, 0, 0]
  choice = found.get_by_label('patches that changed experts in')
  for name, seen in (('block 3', 0), ('block 1', 1), ('none', 0)):
    choice.select_option(name)
    assert marked() == [0, 0, seen, seen, seen, seen, 0, 0]
  choice.select_option('any block')
  # The patch is below the middle, left of it, in a grid of two by two that lies
  # on the picture.
  card = found.locator('.gallery > li:nth-child(2)')
  box = card.locator('.mark use').first.evaluate(
    'u => { const b = u.getBBox(); return [b.x, b.y, b.width, b.height]; }'
  )
  assert box == [0, 1, 1, 1]
  picture, marks = (
    card.locator(what).first.bounding_box() for what in ('img', 'svg')
  )
  assert picture == pytest.approx(marks, abs=0.5)
  # On a black picture the marks are thin white lines in that quarter alone.
  shot = card.locator('.three > div').first.screenshot()
  seen = Image.open(io.BytesIO(shot)).convert('L')
  middle = np.asarray(seen).shape[0] // 2
  light = np.asarray(seen)[4:-4, 4:-4] > 200
  quarters = [
    light[rows, columns].mean()
    for rows in (slice(middle - 10), slice(middle + 4, None))
    for columns in (slice(middle - 10), slice(middle + 4, None))
  ]
  assert 0.01 < quarters.pop(2) < 0.2 and quarters == [0, 0, 0]


def test_points_tell_their_numbers(opened):
  found = opened(1280)
  found.locator('[data-tip^="b, eps (1/255) 16"]').first.hover()
  assert found.locator('#tip').inner_text() == (
    'b, eps (1/255) 16: 75.0% [30.1, 95.4]'
  )
