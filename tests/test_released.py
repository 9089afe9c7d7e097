"""The checkpoints beside docs/results are those that their cards describe."""

import contextlib
import hashlib
import pathlib
import re

import jax
import pytest

from tests.slow import all_slow_but
from vmoe_robust import config as config_lib
from vmoe_robust import load
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config.studies import studies
from vmoe_robust.data import examples, open_source
from vmoe_robust.evaluate.combine import combine

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
