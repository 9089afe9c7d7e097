import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import GOLDEN

from vmoe_robust.models import losses


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'vmoe_small.npz') as file:
    return {k: v for k, v in file.items() if k.startswith('losses/')}
