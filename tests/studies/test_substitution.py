import jax
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.studies import substitution


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'substitution'
  config.study.substitution.batch_size = 8
  config.attack.update(dict(steps=2, eps=(0.1,)))
  return config


def test_identical_experts_can_stand_for_each_other(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  for block in ('encoderblock_0', 'encoderblock_1'):
    mlp = params['Encoder'][block]['Moe']['Mlp']
    params['Encoder'][block]['Moe']['Mlp'] = jax.tree.map(
      lambda a: np.broadcast_to(np.asarray(a)[:1], a.shape).copy(), mlp
    )
  found = substitution.run(opened(config, in_memory(11), model, params))
  same = [r for r in found.rows if r['kind'] in ('rank', 'random')]
  assert same
  for row in same:
    both = row['against_unchanged']
    assert (both['only_first'], both['only_second']) == (0, 0), row


def test_a_dense_model_is_told(config, in_memory, model_of, opened):
  config.model.experts = 0
  model, params = model_of(config)
  with pytest.raises(UserError, match='asks about experts.*is dense'):
    substitution.run(opened(config, in_memory(8), model, params))
