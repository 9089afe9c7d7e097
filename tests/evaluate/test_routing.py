import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.evaluate import routing
from vmoe_robust.models import Record
from vmoe_robust.models.routers.routing import Placement, Routing


def masks(*tokens):
  """One image; each token is the set of its experts among four."""
  rows = [[expert in token for expert in range(4)] for token in tokens]
  return jnp.asarray([rows])


def test_change_is_one_minus_mean_iou():
  before = masks({0, 1}, {2}, {3})
  after = masks({0, 2}, {2}, {1})
  expected = 1 - (1 / 3 + 1 + 0) / 3
  np.testing.assert_allclose(routing.change(before, after), [expected])


def test_a_token_dropped_in_both_is_unchanged():
  dropped = masks(set(), {1})
  np.testing.assert_array_equal(routing.change(dropped, dropped), [0])
  np.testing.assert_allclose(routing.change(dropped, masks({0}, {1})), [0.5])


def test_dropped_share():
  wished, kept = masks({0, 1}, {2, 3}), masks({0}, {2, 3})
  np.testing.assert_allclose(routing.dropped(wished, kept), [0.25])
  nothing = masks(set(), set())  # no expert picked a token of the image
  np.testing.assert_array_equal(routing.dropped(nothing, nothing), [0])


def record_of(experts, kept, images, gates=None):
  experts = jnp.asarray(experts)
  shape = experts.shape
  gates = jnp.ones(shape) if gates is None else jnp.asarray(gates)
  none = jnp.zeros(shape[0])
  decided = Routing(jnp.zeros((*shape[:2], 4)), experts, gates, {}, none)
  placed = Placement(jnp.zeros(shape, int), jnp.asarray(kept))
  return Record(decided, placed, images)


def model_of(router):
  model = config_lib.default().model
  model.experts, model.router.name = 4, router
  return model


def test_selected_of_groups_and_padding():
  # Two groups of two images of one token; the fourth image is padding.
  experts = [[[0, 1], [2, 3]], [[1, 0], [4, 4]]]
  kept = [[[True, True], [True, False]], [[False, False], [False, False]]]
  record = record_of(experts, kept, images=2)
  wish, after = routing.selected(record, model_of('top_k'), 3)
  np.testing.assert_array_equal(
    wish[:, 0], [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
  )
  np.testing.assert_array_equal(
    after[:, 0], [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  )


def test_expert_choice_never_drops():
  kept = [[[True, False, False, True]]]
  record = record_of([[[0, 1, 2, 3]]], kept, images=1)
  wish, after = routing.selected(record, model_of('expert_choice'), 1)
  np.testing.assert_array_equal(wish, after)
  np.testing.assert_array_equal(wish[0, 0], [1, 0, 0, 1])


@pytest.mark.parametrize('heaviest', [0, 3])
def test_soft_counts_the_heaviest_slot(heaviest):
  gates = np.full((1, 1, 8), 0.1, np.float32)
  gates[0, 0, 2 * heaviest + 1] = 0.3
  record = record_of([[[0] * 8]], [[[True] * 8]], images=1, gates=gates)
  model = model_of('soft')
  model.router.slots = 2
  wish, _ = routing.selected(record, model, 1)
  np.testing.assert_array_equal(np.flatnonzero(wish[0, 0]), [heaviest])
