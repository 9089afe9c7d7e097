"""Whether a work directory has the very results that are asked for."""

import pytest

from tests.report.conftest import save_run
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.finished import finished

__all__ = ['save_run']


@pytest.mark.parametrize(
  ('step', 'split', 'goes_on'),
  [
    (4, 'test', True),  # of an attack while training
    (9, 'train (validation)', True),  # of one that selects, at the last step
    (None, 'test', False),  # of weights that are of no run
    (12, 'test', False),
  ],
)
def test_a_training_replaces_results_of_its_own_alone(
  save_run, step, split, goes_on
):
  config = config_lib.default()
  folder = save_run(
    'run',
    [0, 1, 2, 3],
    weights__step=step,
    data__split=split,
    asked__config=config.to_dict(),
  )
  is_finished = lambda: finished(config, folder, lambda *_: '', 9)
  if goes_on:
    assert not is_finished()
    return
  with pytest.raises(UserError, match='has other results'):
    is_finished()
