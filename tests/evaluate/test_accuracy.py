import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import accuracy
from vmoe_robust.mesh import batch_sharding


@pytest.mark.slow
@pytest.mark.parametrize('several', [False, True])
def test_logits_that_are_not_finite_are_wrong(
  config, in_memory, model_of, several
):
  """`argmax` of NaN is class 0, which some labels are."""
  config.train.loss = 'sigmoid' if several else 'softmax'
  model, params = model_of(config)
  source = in_memory(8, multi_label=several)
  assert (source.labels == 0).any()
  params['head']['kernel'] = params['head']['kernel'] * jnp.nan
  batches = eval_batches(
    config.data,
    source,
    batch_size=8,
    sharding=batch_sharding(model.module.mesh),
  )
  found = accuracy.evaluate(accuracy.make(model, config), params, batches)
  assert found['accuracy'] == 0 and np.isnan(found['loss'])
