"""The checkpoints beside docs/results are those that their cards describe."""

import hashlib
import pathlib
import re

import pytest

from tests.slow import all_slow_but
from vmoe_robust import load
from vmoe_robust.data import examples, open_source

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
