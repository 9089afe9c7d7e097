"""Links between the pages of documentation lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
_SKIPPED = {'node_modules', 'runs', 'build', 'site-packages'}
PAGES = sorted(
  page.relative_to(ROOT)
  for page in ROOT.rglob('*.md')
  if not any(
    part.startswith('.') or part in _SKIPPED
    for part in page.relative_to(ROOT).parts[:-1]
  )
)
_CODE = re.compile(r'^```.*?^```|`[^`\n]*`', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_HEADING = re.compile(r'^#+ +(.+?) *#*$', re.MULTILINE)


def anchors(page):
  """Of the headings, as GitHub makes them."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  found = set()
  for heading in _HEADING.findall(text):
    heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
    name = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    count = 0
    while (f'{name}-{count}' if count else name) in found:
      count += 1
    found.add(f'{name}-{count}' if count else name)
  return found


def broken(page):
  """The links of a page that lead nowhere."""
  found = []
  for link in _LINK.findall(_CODE.sub('', page.read_text())):
    if re.match(r'[a-z]+:', link):  # elsewhere
      continue
    path, _, anchor = link.partition('#')
    target = page.parent / path if path else page
    if not target.exists() or (anchor and anchor not in anchors(target)):
      found.append(link)
  return found


def contents(page):
  """The anchors of a page's list of contents: links to itself, one a line."""
  return re.findall(
    r'^- \[[^\]]*\]\(#([^)\s]+)\)', page.read_text(), re.MULTILINE
  )


def sections(page):
  """The anchors of its sections, in order."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  names = re.findall(r'^## +(.+)$', text, re.MULTILINE)
  return [re.sub(r'[^\w\- ]', '', n.lower()).replace(' ', '-') for n in names]


@pytest.mark.parametrize(
  'page', [page for page in PAGES if contents(ROOT / page)], ids=str
)
def test_a_list_of_contents_has_every_section(page):
  assert contents(ROOT / page) == sections(ROOT / page)


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_files_that_are_named_exist(page):
  """Of the package, as `room/file.py`; NAME stands for any."""
  rooms = {p.name for p in (ROOT / 'vmoe_robust').iterdir() if p.is_dir()}
  named = re.findall(
    r'`(?:vmoe_robust/)?(\w+)/([\w/]+\.py)`', (ROOT / page).read_text()
  )
  gone = [
    f'{room}/{file}'
    for room, file in named
    if room in rooms and 'NAME' not in file
    if not (ROOT / 'vmoe_robust' / room / file).exists()
  ]
  assert gone == []


def test_there_are_pages():
  assert {'README.md', 'docs/architecture.md'} <= set(map(str, PAGES))


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links_lead_somewhere(page):
  assert broken(ROOT / page) == []


def test_a_broken_link_is_found(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text(
    '# The `head` of it\n[a](#the-head-of-it) [b](#no) [c](no.md) '
    '[d](https://x.y) `[e](no.md)` [f](page.md#the-head-of-it)\n'
  )
  assert broken(page) == ['#no', 'no.md']
