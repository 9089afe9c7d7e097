"""A run whose router is told the class says so, and is not attacked."""

import json

import numpy as np
import pytest

from tests.train.test_loop import small
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import attack
from vmoe_robust.evaluate.classifier import load
from vmoe_robust.train import loop


@pytest.mark.slow
def test_an_oracle_is_measured_and_not_attacked(tmp_path, capsys):
  config = small(**{'train.steps': 2, 'attack.at_end': False})
  config.model.router.name = 'oracle'
  loop.run(config, tmp_path)
  assert 'told the class of each image' in capsys.readouterr().out
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  names = set().union(*map(json.loads, lines))
  assert 'eval_accuracy_given_class' in names
  assert 'eval_accuracy' not in names and 'eval_loss' not in names
  images = np.zeros((2, 8, 8, 1), np.uint8)
  with pytest.raises(UserError, match="router.name='oracle'.*not a classifier"):
    load(tmp_path)(images)
  config = config_lib.default()
  config.mode, config.checkpoint = 'attack', str(tmp_path)
  config.data.update(name='', split='')
  with pytest.raises(UserError, match="router.name='oracle'.*not a classifier"):
    attack.run(config, str(tmp_path / 'attack'))
