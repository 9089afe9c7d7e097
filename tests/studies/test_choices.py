import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.models.routers import top_k
from vmoe_robust.models.routers.routing import Given
from vmoe_robust.studies import choices

ALL = jnp.ones(4, bool)


def routing_of(logits, selected=2, **fields):
  """What a router with these logits decides of one group, and its config."""
  logits = jnp.array(logits, jnp.float32)[None]
  config = config_lib.default().model.router
  config.update(dict(selected=selected, load_weight=0.0) | fields)
  router = top_k.Router(logits.shape[-1], config)
  given = Given(jnp.ones(logits.shape[:2], bool), None, 1, None)
  params = {'dense': {'kernel': jnp.eye(logits.shape[-1])}}
  bias = None
  if config.balance_rate:
    params['bias'] = bias = jnp.array([0.0, 9.0, 0.0, 0.0])
  found = router.apply({'params': params}, logits, given)
  return found, config, bias


@pytest.mark.parametrize(
  'fields',
  [
    {},
    dict(renormalize=True),
    dict(gate='sigmoid'),
    dict(gate='uniform'),
    dict(gate='sigmoid', balance_rate=0.1),
  ],
  ids=str,
)
def test_with_all_experts_and_the_same_k_nothing_changes(fields):
  logits = np.random.default_rng(0).normal(size=(6, 4))
  routing, config, bias = routing_of(logits, **fields)
  again = choices.chosen_again(routing, config, ALL, 2, bias)
  for name in ('experts', 'gates', 'probabilities'):
    old, new = getattr(routing, name), getattr(again, name)
    assert old.dtype == new.dtype
    np.testing.assert_array_equal(old, new, name)


def test_the_next_best_expert_takes_over_with_the_gate_of_the_smaller_model():
  logits = np.log([[0.4, 0.3, 0.2, 0.1]])
  routing, config, _ = routing_of(logits)
  kept = jnp.array([False, True, True, True])
  again = choices.chosen_again(routing, config, kept, 2)
  assert again.experts.tolist() == [[[1, 2]]]
  np.testing.assert_allclose(again.gates[0, 0], [0.5, 1 / 3], rtol=1e-6)
  one = choices.chosen_again(routing, config, kept, 1)
  assert one.experts.tolist() == [[[1, 4]]]  # the second one is none
  np.testing.assert_allclose(one.gates[0, 0], [0.5, 0], rtol=1e-6)


@pytest.mark.parametrize(
  ('fields', 'gate'),
  [
    ({}, 1.0),
    (dict(renormalize=True), 1.0),
    (dict(gate='uniform'), 1.0),
    (dict(gate='sigmoid'), 0.75),
  ],
  ids=str,
)
def test_the_last_expert_takes_all_tokens(fields, gate):
  routing, config, _ = routing_of([[5.0, 1, 0, np.log(3)]] * 3, **fields)
  kept = jnp.array([False, False, False, True])
  again = choices.chosen_again(routing, config, kept, 2)
  assert again.experts.tolist() == [[[3, 4]] * 3]
  np.testing.assert_allclose(again.gates, [[[gate, 0]] * 3], rtol=1e-6)


def test_a_bias_orders_what_is_kept():
  logits = [[3.0, 0, 1, 2]]
  fields = dict(gate='sigmoid', balance_rate=0.1)
  routing, config, bias = routing_of(logits, **fields)
  assert routing.experts.tolist() == [[[1, 0]]]
  kept = jnp.array([True, False, True, True])
  again = choices.chosen_again(routing, config, kept, 2, bias)
  assert again.experts.tolist() == [[[0, 3]]]


def test_what_is_not_finite_stays_so_unless_it_is_removed():
  routing, config, _ = routing_of([[2.0, 1, 0, 0]])
  logits = routing.logits.at[..., 0].set(np.nan)
  routing = routing._replace(logits=logits)
  again = choices.chosen_again(routing, config, ALL, 2)
  assert np.isnan(again.gates).all()
  kept = jnp.array([False, True, True, True])
  again = choices.chosen_again(routing, config, kept, 2)
  assert np.isfinite(again.gates).all()
  assert again.experts.tolist() == [[[1, 2]]]


def test_noise_moves_choice_and_gates():
  routing, config, _ = routing_of([[2.0, 0, 0, 0]], selected=1)
  noise = jnp.array([[[0.0, 3, 0, 0]]])
  again = choices.chosen_again(routing, config, ALL, 1, noise=noise)
  assert again.experts.tolist() == [[[1]]]
  gate = jax.nn.softmax(jnp.array([2.0, 3, 0, 0]))[1]
  np.testing.assert_allclose(again.gates, gate, rtol=1e-6)


def test_numbers_that_no_model_has():
  choices.check_numbers('config.f', (1, 3), 1, 3, 'numbers')
  for value in (0, 4, 1.5):
    with pytest.raises(UserError, match=r'config\.f=.* are 1 to 3'):
      choices.check_numbers('config.f', (1, value), 1, 3, 'numbers')
