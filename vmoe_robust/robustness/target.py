"""What is attacked and what judges: functions from images to logits."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vmoe_robust.attacks import Images

Logits = Float[Array, 'batch classes']
Labels = Int[Array, 'batch'] | Float[Array, 'batch classes']
Values = Float[Array, 'batch']
Mask = Bool[Array, 'batch']

# (params, images, mask, key) to logits and whatever else a loss may use, such
# as the routing; () if there is nothing. The mask is False for padding. The key
# is what a random function draws from.
Forward = Callable[
  [PyTree, Images, Mask, Key[Array, '']], tuple[Logits, PyTree]
]
# What `Forward` returned besides the logits of the clean image and of x_adv,
# and the mask, to columns: one row an image. Columns of more than one axis are
# summed over the images in the end.
Compare = Callable[[PyTree, PyTree, Mask], dict[str, Array]]

# Draws over which a random function is judged.
JUDGE_DRAWS = 20


def cross_entropy(logits: Logits, labels: Labels) -> Values:
  """Softmax cross-entropy of one label an image, sigmoid of several."""
  logits = logits.astype(jnp.float32)
  if labels.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1)


@dataclasses.dataclass(frozen=True)
class Target:
  """A classifier: one function judges it, and one is attacked.

  Both are the same function, or the attacked one computes in a cheaper type.

  Args:
    judge: the function whose predictions count.
    attacked: the function whose gradients are followed.
    params: the weights, which both are given.
    mesh: the devices, over which the batch is split.
    classes: the number of logits.
    random: whether the functions draw from their key.
    together: the number of consecutive images that may change each other's
      predictions; 1 if each image is predicted alone.
    is_known: `together` follows from how the model is built, and need not be
      tested.
    differentiable: whether `attacked` has a gradient by the image.
    why: what JAX said where it has none.
    convolves: whether there are convolutions, see `apart.py`.
    context: `(params, clean images, mask)` to what a loss may compare with,
      such as the clean logits; computed once when an image enters.
    compare: columns of the results besides predictions and losses.
  """

  judge: Forward
  attacked: Forward
  params: PyTree
  mesh: Mesh
  classes: int
  random: bool = False
  together: int = 1
  is_known: bool = False
  differentiable: bool = True
  why: Exception | None = None
  convolves: bool = False
  context: Callable[[PyTree, Images, Mask], PyTree] | None = None
  compare: Compare | None = None


def predict(
  target: Target,
  forward: Forward,
  images: Images,
  mask: Mask,
  key: Key[Array, ''],
  draws: int = 1,
) -> tuple[Logits, PyTree]:
  """Logits, in float32 at least, and what else the function returned.

  A random function is judged by what it does on average: with several draws
  the logits are the logarithm of its mean probabilities.
  """
  if not target.random or draws == 1:
    logits, more = forward(target.params, images, mask, key)
    return _as_float(logits), more

  def one(total, key):
    logits, _ = forward(target.params, images, mask, key)
    return jnp.logaddexp(total, log_probabilities(_as_float(logits))), None

  keys = jax.random.split(key, draws)
  # Logits may be of another type than images.
  none = jax.eval_shape(lambda: one(-jnp.inf, keys[0])[0])
  none = jnp.full(none.shape, -jnp.inf, none.dtype)
  total, _ = jax.lax.scan(one, none, keys)
  return total - np.float32(np.log(draws)), ()


def log_probabilities(
  logits: Float[Array, '*batch classes'],
) -> Float[Array, '*batch classes']:
  """Logarithms of the softmax, NaN in each image with a logit not finite.

  Of finite logits they are finite, where the logarithm of a probability that
  rounds to 0 is not.
  """
  finite = jnp.isfinite(logits).all(-1, keepdims=True)
  return jnp.where(finite, jax.nn.log_softmax(logits), jnp.nan)


def as_floats(images: Array) -> Images:
  """Pixels in [0, 1], whatever they travelled as.

  Looked up, so that they are to the last bit those of NumPy in every program:
  a division becomes a product, which a later difference takes in unrounded.
  In l1 that adds up to more than the tolerance of a ball.
  """
  if images.dtype != jnp.uint8:
    return images.astype(jnp.float32)
  levels = np.arange(256, dtype=np.float32) / np.float32(255)
  return jnp.asarray(levels)[images.astype(jnp.int32)]


def _as_float(logits):
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
