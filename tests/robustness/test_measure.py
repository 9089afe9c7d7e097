import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes


def test_a_logit_that_is_not_finite_is_no_class():
  logits = jnp.array(
    [[0, 2, 1], [np.nan, 5, 0], [5, np.nan, 0], [np.inf, 0, 0], [0, -np.inf, 1]]
  )
  assert classes(logits).tolist() == [1, -1, -1, -1, -1]


@pytest.mark.parametrize('module', [np, jnp])
def test_one_label(module):
  predictions, labels = module.array([0, 1, -1, 2]), module.array([0, 2, -1, 2])
  found = is_right(predictions, labels)  # -1 is no class, even as a label
  assert found.tolist() == [True, False, False, True]


@pytest.mark.parametrize('module', [np, jnp])
def test_several_labels(module):
  labels = module.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
  right = is_right(module.array([2, 0, -1, 1]), labels)
  assert right.tolist() == [True, False, False, False]
  if module is jnp:
    jitted = jax.jit(is_right)(jnp.array([2, 0, -1, 1]), labels)
    assert jitted.tolist() == right.tolist()
