"""Modes on weights that come without a configuration."""

import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.data import open_source
from vmoe_robust.evaluate import attack
from vmoe_robust.evaluate.classifier import load
from vmoe_robust.report.results import read_results
from vmoe_robust.studies import run as studies


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A V-MoE for the digits as it might have been released."""
  rng = np.random.default_rng(0)
  shapes = {
    'cls': (1, 1, 8),
    'embedding/kernel': (4, 4, 1, 8),
    'embedding/bias': (8,),
    'Encoder/posembed_input/pos_embedding': (1, 5, 8),
    'Encoder/encoder_norm/scale': (8,),
    'Encoder/encoder_norm/bias': (8,),
    'head/kernel': (8, 10),
    'head/bias': (10,),
  }
  block = 'Encoder/encoderblock_0'
  for name in ('LayerNorm_0', 'LayerNorm_1'):
    shapes |= {f'{block}/{name}/{leaf}': (8,) for leaf in ('scale', 'bias')}
  for name in ('query', 'key', 'value'):
    shapes[f'{block}/SelfAttention/{name}/kernel'] = (8, 2, 4)
    shapes[f'{block}/SelfAttention/{name}/bias'] = (2, 4)
  shapes[f'{block}/SelfAttention/out/kernel'] = (2, 4, 8)
  shapes[f'{block}/SelfAttention/out/bias'] = (8,)
  moe = f'{block}/Moe'
  shapes |= {
    f'{moe}/Router/dense/kernel': (8, 4),
    f'{moe}/Mlp/Dense_0/kernel': (4, 8, 16),
    f'{moe}/Mlp/Dense_0/bias': (4, 16),
    f'{moe}/Mlp/Dense_1/kernel': (4, 16, 8),
    f'{moe}/Mlp/Dense_1/bias': (4, 8),
  }
  path = tmp_path_factory.mktemp('released') / 'vmoe.npz'
  arrays = {
    n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()
  }
  np.savez(path, **arrays)
  return str(path)


@pytest.fixture
def config(weights):
  config = config_lib.default()
  config.update(mode='study', checkpoint=weights)
  config.data.update(name='digits', split='test[:16]')
  config.study.corruptions.update(
    names=('contrast',), severities=(5,), batch_size=16
  )
  return config


@pytest.mark.slow
def test_data_and_weights_are_enough(config, weights, tmp_path, capsys):
  studies.run(config, tmp_path)
  results = read_results(tmp_path)
  assert results['weights']['checkpoint'] == weights
  assert results['weights']['step'] is None
  assert results['asked']['config']['model']['router']['selected'] == 2
  assert weights in capsys.readouterr().out
  clf = load(weights, mesh={})
  test = open_source(config.data, 'test')
  examples = [test[i] for i in range(16)]
  images = np.stack([example['image'] for example in examples])
  labels = np.array([example['label'] for example in examples])
  right = clf(images).argmax(-1) == labels
  clean = results['summary']['clean_accuracy']
  assert clean['value'] == pytest.approx(right.mean())
  studies.run(config, tmp_path)  # which is finished
  config.num_selected = 1
  with pytest.raises(UserError, match='num_selected=1 .was 0'):
    studies.run(config, tmp_path)


@pytest.mark.slow
def test_they_are_attacked(config, tmp_path):
  config.mode, config.study = 'attack', config_lib.default().study
  config.attack.update(eps=(0.1,), steps=1, batch_size=16)
  attack.run(config, tmp_path)
  results = read_results(tmp_path)
  assert results['weights']['step'] is None
  assert results['weights']['checksum'].startswith('checksums ')
  routing = results['rows'][0]['routing']
  load_before = routing['encoderblock_0']['load_before']
  assert sum(load_before) == 16 * 5 * 2


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('data.name', '', 'does not say which data.*config.data.name=NAME'),
    ('data.image_size', 16, 'config.data.image_size=16 .* takes 8; leave'),
    ('model.hidden', 16, 'config.model.hidden=16.* has no effect'),
    ('model.router.selected', 2, 'router.selected=2.* has no effect'),
    ('num_selected', 5, 'config.num_selected=5 .*use 1 to 4'),
    ('num_selected', -1, 'config.num_selected=-1 .*use 1 to 4'),
  ],
)
def test_what_does_not_fit_is_refused(config, tmp_path, field, value, words):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=words):
    studies.run(config, tmp_path)
