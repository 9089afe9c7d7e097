"""The one verdict: when a prediction counts as right.

A prediction is wrong if its class is wrong, or if any logit is not finite:
`argmax` of NaN would be class 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

# In place of a class, where a logit is not finite.
NO_CLASS = -1


def classes(
  logits: Float[Array, 'batch classes'],
) -> Int[Array, 'batch']:
  """The top class of each image, -1 where any logit is not finite."""
  top = logits.argmax(-1).astype(jnp.int32)
  return jnp.where(jnp.isfinite(logits).all(-1), top, NO_CLASS)


def is_right(
  predictions: Int[Array, 'rows'] | Int[np.ndarray, 'rows'],
  labels: Shaped[Array, 'rows ...'] | Shaped[np.ndarray, 'rows ...'],
) -> Bool[Array, 'rows'] | Bool[np.ndarray, 'rows']:
  """Whether each class is the label, or one of several labels.

  Args:
    predictions: of `classes`; -1 is never right, whatever the label.
    labels: a class an image, or [rows, classes] of zeros and ones.
  """
  finite = predictions >= 0
  if labels.ndim == 1:
    return finite & (predictions == labels)
  xp = jnp if isinstance(predictions, jax.Array) else np
  chosen = xp.maximum(predictions, 0)[:, None]
  return finite & (xp.take_along_axis(labels, chosen, 1)[:, 0] > 0)
