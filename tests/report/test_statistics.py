import numpy as np
import pytest

from vmoe_robust.evaluate import outcome


@pytest.mark.parametrize(
  ('right', 'low', 'high'),
  # Of none and of all, a bound is the share itself; 81 of 263 is the example
  # of Newcombe (1998), table I.
  [(0, 0, 0.1611), (20, 0.8389, 1), (81, 0.2553, 0.3662)],
)
def test_interval_is_wilsons_and_within_bounds(right, low, high):
  count = 263 if right == 81 else 20
  found = outcome.interval(np.arange(count) < right)
  np.testing.assert_allclose(found, (low, high), atol=1e-4)
  assert found[0] >= 0 and found[1] <= 1
