import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial
from vmoe_robust.studies import conditions, frozen_routing

EPS = 0.2


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'frozen_routing'
  config.study.frozen_routing.batch_size = 8
  config.attack.update(dict(eps=(EPS,), steps=2))
  return config


@pytest.mark.slow
def test_with_its_own_routing_it_is_the_attack_of_all_studies(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  source = in_memory(8)
  found = frozen_routing.run(opened(config, source, model, params))
  forward = adversarial.plain(model)
  images = source.images.astype(np.float32) / 255
  batch = {
    'label': jnp.array(source.labels),
    'mask': jnp.ones(8, bool),
    'index': jnp.arange(8),
  }

  @jax.jit
  def attacked(images):
    attack = adversarial.attack(forward, config)
    x_adv = attack(params, images, batch, jnp.float32(EPS))
    return model.apply(params, x_adv)[0].argmax(-1)

  expected = attacked(images)
  name = 'eps 51/255, free attack, own routing'
  here = conditions.of(found.columns, name)
  np.testing.assert_array_equal(here['prediction_after'], expected)
  assert [row['condition'] for row in found.rows][:2] == ['clean', name]


@pytest.mark.slow
def test_the_clean_image_under_its_own_routing_is_itself(config, model_of):
  model, params = model_of(config)
  held = jax.jit(frozen_routing.frozen(model))
  plain = jax.jit(adversarial.plain(model))
  x, y = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 1))
  mask = jnp.ones(4, bool)
  logits, aux = plain(params, x, mask, ())
  routing = frozen_routing.routing_of(aux)
  np.testing.assert_allclose(
    held(params, x, mask, routing)[0], logits, atol=1e-5
  )
  own, other = plain(params, y, mask, ())[0], held(params, y, mask, routing)
  assert jnp.abs(own - other[0]).max() > 1e-3
  for block, record in other[1].records.items():
    for name in ('experts', 'gates'):
      ours = getattr(record.routing, name)
      np.testing.assert_array_equal(ours, getattr(routing[block], name))


def test_a_dense_model_is_told(config, in_memory, model_of, opened):
  config.model.experts = 0
  model, params = model_of(config)
  with pytest.raises(UserError, match='asks about experts.*is dense'):
    frozen_routing.run(opened(config, in_memory(8), model, params))
