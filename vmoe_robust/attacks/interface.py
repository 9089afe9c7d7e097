"""What an attack is given, what it keeps between steps, what it gives back.

An attack is a frozen dataclass with two pure functions: `start` makes the state
of a batch, `step` asks the loss about `state.x`, remembers the worst point and
moves on. Every image counts its own steps, so that a batch may hold images that
began at different times; `complete` runs all images from start to end together.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

# Pixels in [0, 1].
Images = Float[Array, 'batch height width channels']

# One typed PRNG key an image: what is drawn follows the image, not the batch
# it is in, nor the mesh.
Keys = Key[Array, 'batch']

Values = Float[Array, 'batch']

# Images to the loss of each, which the attack raises, and whether each is
# broken: misclassified or, if the attack has targets, taken for its target.
Loss = Callable[[Images], tuple[Values, Bool[Array, 'batch']]]


class State(flax.struct.PyTreeNode):
  """Of each image, where the attack is and the worst that it has found."""

  clean: Images
  x: Images  # the loss is asked about it next
  x_adv: Images  # the worst so far: broken before not, then the higher loss
  value: Values  # its loss
  broken: Bool[Array, 'batch']  # whether it is
  turn: Int[Array, 'batch']  # how often the loss was asked
  led: Int[Array, 'batch']  # how often it had a gradient to follow
  own: PyTree  # what the attack remembers besides, batch first


@runtime_checkable
class Attack(Protocol):
  """One algorithm with its settings."""

  @property
  def steps(self) -> int:
    """How many steps bring an image to the end."""
    ...

  def start(
    self,
    images: Images,
    keys: Keys,
    eps: Float[Array, ''],
    restart: Int[Array, 'batch'],
  ) -> State:
    """The state of images that the loss was not asked about yet.

    Args:
      images: pixels in [0, 1].
      keys: one an image and restart, for all that is drawn.
      eps: radius, in units of pixels in [0, 1].
      restart: 0 for the first run on an image.
    """
    ...

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """Asks about `state.x`, records the answer and moves `state.x`."""
    ...


def fresh(clean: Images, x: Images, own: PyTree) -> State:
  """The state of an attack that begins at `x`."""
  batch = len(clean)
  return State(
    clean=clean,
    x=x,
    x_adv=clean,
    value=jnp.full(batch, -jnp.inf, clean.dtype),
    broken=jnp.zeros(batch, bool),
    turn=jnp.zeros(batch, jnp.int32),
    led=jnp.zeros(batch, jnp.int32),
    own=own,
  )


def record(
  state: State,
  values: Values,
  broken: Bool[Array, 'batch'],
  slope: Images | None = None,
) -> State:
  """Keeps `state.x` where it does more harm than `state.x_adv`.

  Losses may come in another float type than that of the images, which is the
  type of everything that a state holds.

  Args:
    state: before the step.
    values: of the loss at `state.x`.
    broken: whether the images are broken there.
    slope: the gradient there; None: it was not asked for.
  """
  led = state.led if slope is None else state.led + leads(slope)
  values = values.astype(state.value.dtype)
  better = broken & ~state.broken
  better |= (broken == state.broken) & (values > state.value)
  return state.replace(
    x_adv=where(better, state.x, state.x_adv),
    value=jnp.where(better, values, state.value),
    broken=jnp.where(better, broken, state.broken),
    turn=state.turn + 1,
    led=led,
  )


def leads(slope: Images) -> Bool[Array, 'batch']:
  """Whether a gradient, as `gradient` gives it, points anywhere."""
  return (slope != 0).any((1, 2, 3))


def gradient(
  loss: Loss, x: Images
) -> tuple[Values, Bool[Array, 'batch'], Images]:
  """The loss of each image, whether it is broken, and the gradient.

  Entries of the gradient that are not finite have no direction and become 0.
  Where all are 0 the step is zero. Loss and gradient have the images' type.
  """

  def total(x):
    values, broken = loss(x)
    return values.sum(), (values, broken)

  (_, (values, broken)), slope = jax.value_and_grad(total, has_aux=True)(x)
  slope = jnp.where(jnp.isfinite(slope), slope, 0)
  return values.astype(x.dtype), broken, slope


def complete(
  attack: Attack,
  loss: Loss,
  images: Images,
  keys: Keys,
  eps: Float[Array, ''],
  restarts: int = 1,
  first: int | Int[Array, ''] = 0,
) -> Images:
  """Runs an attack to its end on all images together.

  The clean image is the first candidate, so no image comes out easier than it
  went in.

  Args:
    attack: the algorithm.
    loss: what it raises.
    images: pixels in [0, 1].
    keys: one an image.
    eps: radius, in units of pixels in [0, 1].
    restarts: runs on each image, each from a start of its own.
    first: number of the first of them; others draw other starts.

  Returns:
    Of each image the worst that was found in any restart.
  """
  look = lambda state: record(state, *loss(state.x))
  batch = len(images)

  def run(restart, before):
    number = jnp.full(batch, first + restart)
    own_keys = jax.vmap(jax.random.fold_in)(keys, number)
    state = attack.start(images, own_keys, eps, number)
    state = state.replace(
      x_adv=before.x_adv, value=before.value, broken=before.broken
    )
    advance = lambda _, state: attack.step(loss, state, eps)
    # The last point is only looked at, which needs no gradient.
    state = look(jax.lax.fori_loop(0, attack.steps - 1, advance, state))
    return before.replace(
      x_adv=state.x_adv, value=state.value, broken=state.broken
    )

  worst = look(fresh(images, images, None))
  return jax.lax.fori_loop(0, restarts, run, worst).x_adv


def where(condition: Bool[Array, 'batch'], yes: Array, no: Array) -> Array:
  """Chooses whole images, or other arrays whose first axis is the batch."""
  shape = condition.shape + (1,) * (yes.ndim - 1)
  return jnp.where(condition.reshape(shape), yes, no)
