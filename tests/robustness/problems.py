"""Functions and images that the tests of the engine attack."""

import jax.numpy as jnp
import numpy as np

SHAPE, EXAMPLES = (6, 6, 1), 44
QUICK = dict(iterations=12, queries=40, progress=False, batch_size=16)


def problem(classes=5, seed=0, examples=EXAMPLES):
  """A smooth function, and images of which it takes most for their label."""
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(36, 24)) / 3, jnp.float32)
  head = jnp.asarray(rng.normal(size=(24, classes)), jnp.float32)

  def fn(x):
    return jnp.tanh(x.reshape(len(x), -1) @ hidden) @ head

  images = rng.uniform(size=(examples, *SHAPE)).astype(np.float32)
  labels = np.asarray(fn(images)).argmax(-1)
  labels[::11] = (labels[::11] + 1) % classes
  return fn, images, labels
