"""What a run that is cut short has found."""

import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.robustness.resume import Unfinished


def test_a_folder_is_that_of_the_run_that_first_kept_something(tmp_path):
  """One that was refused before it had found anything leaves nothing."""
  folder = tmp_path / 'unfinished'
  Unfinished(folder, {'the seed': 0})
  assert not folder.exists()
  kept = Unfinished(folder, {'the seed': 1})
  kept.put('0', {'index': np.arange(2)})
  kept.wait()
  with pytest.raises(UserError, match='the seed is 0 here and was 1'):
    Unfinished(folder, {'the seed': 0})
  [found] = Unfinished(folder, {'the seed': 1}).get('0').values()
  np.testing.assert_array_equal(found, [0, 1])
