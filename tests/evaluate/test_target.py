"""What `config.attack` makes of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.conftest import small_config
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import target
from vmoe_robust.evaluate.classifier import select
from vmoe_robust.robustness.slots import Goal


@pytest.mark.parametrize('name', ['pgd', 'paper'])
@pytest.mark.parametrize('aim', ['runner_up', 'least_likely', 'random'])
def test_the_target_is_the_one_that_was_asked_for(name, aim):
  config = config_lib.default()
  config.model.num_classes = 4
  config.attack.name, config.attack.target = name, aim
  found = target.ensemble(config)
  assert found.aim == aim and found.stages[0].until == 'target'


@pytest.mark.parametrize(
  ('fields', 'shared'),
  [
    (dict(experts=0), False),
    (dict(experts=4, router=dict(name='soft')), False),
    (dict(experts=4), True),
  ],
)
def test_a_model_that_shares_nothing_is_attacked_alike_with_capacity(
  fields, shared
):
  """The loss of images that share slots rounds to 0 where a model is sure."""
  config = config_lib.default()
  config.model.update(dict(num_classes=3, **fields))
  logits = jnp.array([[30.0, 0.0, -1.0]])
  goal = Goal(jnp.array([0]), jnp.array([1]), ())

  def slope(experts):
    config.attack.experts = experts
    raised = target.ensemble(config).stages[0].loss
    return jax.grad(lambda x: raised(x, None, goal).sum())(logits)

  alone, together = slope('dropless'), slope('capacity')
  np.testing.assert_allclose(alone[0, 0], -1, rtol=1e-5)
  if shared:
    assert abs(together[0, 0]) < 1e-10
  else:
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize('selected', [2.5, True, -1, 5])
def test_a_number_of_experts_is_a_whole_one(selected):
  config = config_lib.default()
  config.model.experts = 4
  with pytest.raises(UserError, match=f'num_selected={selected} does not fit'):
    select(config, selected, 'num_selected')
  select(config, np.int64(2), 'num_selected')
  assert config.model.router.selected == 2


@pytest.mark.parametrize('first', ['attacked', 'judge'])
def test_half_precision_is_of_the_attack_alone(first, model_of):
  """Whichever of the two JAX sees first: a trace is kept with the model."""
  config = small_config()
  config.attack.compute_dtype = 'bfloat16'
  model, params = model_of(config)
  found = target.of_config(model, params, config)
  images, mask = jnp.zeros((4, 8, 8, 1)), jnp.ones(4, bool)

  def halves(forward):
    program = lambda images: forward(params, images, mask, ())[0]
    return str(jax.make_jaxpr(program)(images)).count('bf16')

  ways = {'attacked': found.attacked, 'judge': found.judge}
  order = sorted(ways, key=lambda name: name != first)
  counts = {name: halves(ways[name]) for name in order}
  assert counts['judge'] == 0 < counts['attacked']
