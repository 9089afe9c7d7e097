"""The front matter of a model card is what programs read."""

import yaml

from vmoe_robust.report.card import About, card
from vmoe_robust.report.page.runs import Problems, find


def test_small_numbers_are_numbers_in_yaml_too(save_run):
  rare = {'value': 2e-05, 'interval': [1e-16, 3.5e-05], 'n': 50_000}
  odd = '2e-05 "3e-06'
  row = {'condition': 'c', 'attack': odd, 'norm': 'l2', 'eps': 1e-05}
  folder = save_run('a', [0, 1, 2, 9], rows=[row | {'robust_accuracy': rare}])
  about = About(odd, 's', False, '', [], [], 'a.npz', 'images', [])
  text = card(about, find([folder], Problems()), Problems())
  (entry,) = yaml.safe_load(text.split('---\n')[1])['model-index']
  found = entry['results'][0]['metrics'][1]
  assert entry['name'] == odd and odd in found['name']
  assert found['value'] == 2e-05
  assert found['args'] == {
    'norm': 'l2', 'eps': 1e-05, 'images': 50_000, 'interval': [1e-16, 3.5e-05]
  }  # fmt: skip
