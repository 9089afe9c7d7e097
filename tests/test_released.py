"""The checkpoints beside docs/results are those that their cards describe."""

import contextlib
import hashlib
import pathlib
import re
import tarfile

import jax
import pytest

from tests.slow import all_slow_but
from vmoe_robust import config as config_lib
from vmoe_robust import load
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config.studies import studies
from vmoe_robust.data import examples, open_source
from vmoe_robust.evaluate.combine import combine
from vmoe_robust.experiment.accuracies import accuracies, attacked, studied
from vmoe_robust.experiment.comparing import compare
from vmoe_robust.experiment.description import checked
from vmoe_robust.experiment.markdown import markdown
from vmoe_robust.experiment.measures import measures
from vmoe_robust.experiment.parts import parts
from vmoe_robust.experiment.states import states
from vmoe_robust.experiment.usage import of_each
from vmoe_robust.report.table import written

FOLDER = pathlib.Path(__file__).parents[1] / 'docs/results/digits'
NAMES = sorted(path.stem for path in FOLDER.glob('*.safetensors'))


def test_models_of_the_table_are_released():
  table = (FOLDER.parent / 'digits.md').read_text()
  assert set(re.findall(r'\(digits/(\w+)\.md\)', table)) == set(NAMES)
  assert len(NAMES) == 6


@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_small_and_has_the_checksum_of_its_card(name):
  data = (FOLDER / f'{name}.safetensors').read_bytes()
  assert len(data) < 2e6
  card = (FOLDER / f'{name}.md').read_text()
  assert f'| {hashlib.sha256(data).hexdigest()} |' in card


def _asked(mode):
  config = config_lib.default()
  config.mode = mode
  config.data.update(name='', split='')  # as trained
  if mode == 'attack':
    yield config
    return
  for name in studies(config.study):
    config.study.name = name
    yield config


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('mode', ['attack', 'study'])
def test_what_older_versions_kept_is_not_refused(name, mode):
  """Of fields that are not read: they had other defaults, and limits."""
  path = str(FOLDER / f'{name}.safetensors')
  with contextlib.closing(open_weights(path)) as weights:
    for asked in _asked(mode):
      asked.checkpoint = path
      config_lib.validate(combine(asked, weights), jax.device_count())


@pytest.mark.parametrize(
  'name', all_slow_but(['dense'], ['dense', 'moe_e8_adv'])
)
def test_a_model_has_the_clean_accuracy_of_its_card(name):
  model = load(FOLDER / f'{name}.safetensors')
  test = open_source(model.config.data, 'test')
  images, labels = examples(test, model.config.data, len(test))
  right = int((model(images).argmax(-1) == labels).sum())
  card = (FOLDER / f'{name}.md').read_text()
  told = float(re.search(r'value: (\S+)\n *name: "Clean', card)[1])
  # Another processor may decide an image otherwise that is on the edge.
  assert abs(right - told * len(labels)) <= 1.01


# The models of docs/results/digits.md, by how a line of its tables begins.
_RUNS = {
  'ViT': 'dense',
  'none: ViT': 'dense',
  'wide ViT': 'dense_wide',
  'ViT of the cost of two a token': 'dense_k2',
  'V-MoE of 2 experts': 'moe_e2',
  'V-MoE of 4': 'moe_e4',
  'V-MoE of 8': 'moe_e8',
  'V-MoE of 8 experts': 'moe_e8',
  'V-MoE of 16': 'moe_e16',
  'V-MoE of 8, two a token': 'moe_e8_k2',
  'learned': 'moe_e8',
  'all gates 1': 'moe_uniform',
  'hash': 'moe_hash',
  "hash of the token's position": 'moe_hash',
  'frozen router': 'moe_frozen',
  'a router frozen as it was drawn': 'moe_frozen',
  'soft mixing': 'moe_soft',
  'experts choose': 'moe_expert_choice',
  'experts choose their tokens': 'moe_expert_choice',
}


def _lines(page, section):
  """Cells of the first table of a section, by the run they are of."""
  text = page.partition(f'\n## {section}\n')[2].partition('\n## ')[0]
  table = text[text.index('|') :].partition('\n\n')[0].split('\n')[2:]
  cells = [line.strip('| ').split(' | ') for line in table]
  return [(_RUNS[re.split(r' \(|: chosen', c[0])[0]], c) for c in cells]


def test_recipes_of_the_guide_are_those_of_their_results():
  """The table of docs/training.md, of docs/results/digits_recipes.md."""
  from configs.experiments.digits_recipes import RECIPES

  cells = lambda line: line.replace('*', '').strip('| ').split(' | ')
  found = (FOLDER.parent / 'digits_recipes.md').read_text()
  lines = [cells(line) for line in found.split('\n') if line.startswith('| ')]
  accuracy = {c[0]: [x.split(' (')[0] for x in c[1:]] for c in lines[:15]}
  pairs = [c for c in lines if c[3:4] == ['pgd linf 16/255']]
  pair = {(c[0], c[1]): c[6:8] for c in pairs}
  guide = (FOLDER.parents[1] / 'training.md').read_text()
  text = guide.partition('## Does this recipe favour the V-MoE?')[2]
  shown = text[text.index('|--') :].partition('\n\n')[0].split('\n')[1:]
  for name, line in zip(RECIPES, shown, strict=True):
    moe, dense = f'moe_{name}', f'dense_{name}'
    *_, less = cells(line)
    assert cells(line)[3:7] == [*accuracy[dense], *accuracy[moe]]
    difference, interval = pair[moe, dense]
    assert less == f'{difference} ({interval})'.replace('+0.0', '0.0')


@pytest.mark.slow
def test_numbers_of_the_digits_are_those_of_their_results(
  tmp_path, monkeypatch
):
  """docs/results/digits_runs.md and digits.md, of the archive beside them."""
  from configs.experiments import digits_paper

  monkeypatch.chdir(FOLDER.parents[2])
  with tarfile.open(FOLDER / 'runs.tar.xz') as archive:
    archive.extractall(tmp_path, filter='data')
  config = digits_paper.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  every, config = parts(config, tmp_path), checked(config)
  found = states(every, nothing_runs=True)
  asked = {one['study'] for one in config.measures}
  attacks, left_out = attacked(every, found)
  of_studies, more = studied(every, found, asked)
  assert not left_out and not more
  means = accuracies(config, attacks)
  pairs = compare(config, every, found, left_out)
  text = markdown(
    {'name': '', 'command': ''},
    every,
    found,
    attacks,
    of_each(every),
    means,
    pairs,
    measures(config, of_studies, pytest.fail),
  )
  page = (FOLDER.parent / 'digits_runs.md').read_text()
  # The p of correlations are drawn, by what a version of NumPy draws.
  before, _, after = page.partition('## Do they go with robustness?')
  page = before + '## What it took' + after.partition('## What it took')[2]
  assert text.split('\n')[3:] == page.split('\n')[3:]

  page = (FOLDER.parent / 'digits.md').read_text()
  known = {(row['run'], row['condition']): row for row in means[::-1]}
  less = {
    (row['first'], row['second']): row['difference']
    for row in pairs
    if row['condition'] == 'autoattack linf 16/255'
  }
  shown = lambda values: ', '.join(f'{100 * v:.1f}' for v in values)
  for section, end, other in (
    ('How many experts?', '_adv', 'dense_adv'),
    ('Do routes have to be learned?', '_adv', 'moe_e8_adv'),
    ('Trained naturally', '', 'dense'),
  ):
    for run, cells in (lines := _lines(page, section)):
      attack = known[run + end, 'autoattack linf 16/255']
      each = [one['accuracy']['value'] for one in attack['seeds']]
      clean = known[run + end, 'clean']['accuracy']['value']
      assert cells[1] == f'{shown([clean])}%'
      assert shown(each) in cells[2:4], (section, run)
      if other != 'moe_e8_adv':
        assert f'{shown([attack["accuracy"]["value"]])}%' in cells[3:5]
      difference = less.get((run + end, other))
      if difference and difference['n'] > 2:
        numbers = difference['value'], *difference['interval']
        mean, *ends = (written(100 * v, 'points', 0) for v in numbers)
        said = f'{mean} ({" to ".join(ends)})'
        assert cells[-1].replace('*', '') == said, (section, run)
    assert len(lines) >= 7
