"""How steep a function is in routing cells, and how it jumps between them.

A routing cell is a set of images in which no choice of any token changes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vmoe_robust.attacks import Images, norms
from vmoe_robust.attacks.interface import where
from vmoe_robust.robustness.measure import classes

# Of points: their logits, and which experts each token has in each block.
Choices = Bool[Array, 'batch blocks tokens experts']
Answer = Callable[[Images], tuple[Float[Array, 'batch classes'], Choices]]
# How a pair is drawn, and whether its points are in one cell.
KINDS, PLACES = ('random', 'directed'), ('within', 'across')
# A segment is halved so often: float32 has 24 bits, and more steps are needed
# where the boundary is near the image.
HALVINGS = 40
# Steps back to the image from a boundary, each twice as long as the one before.
_STEPS_BACK = 8
# The shortest pairs, as a share of the longest.
_SHORTEST = 0.01


class Jump(NamedTuple):
  """What happens at a boundary between routing cells."""

  found: Bool[Array, 'batch']  # whether the other point has other choices
  size: Float[Array, 'batch']  # of the difference of logits, L2
  relative: Float[Array, 'batch']  # to the logits' length
  rounding: Float[Array, 'batch']  # the same of a step as small inside the cell
  distance: Float[Array, 'batch']  # between the two sides, L2
  order: Int[Array, 'batch']  # choices exchanged in the first block with any
  changed: Int[Array, 'batch']  # choices exchanged in all blocks
  flips: Bool[Array, 'batch']  # whether the class differs


def spectral_norm(
  logits_of: Callable[[Images, bool], Float[Array, 'batch classes']],
  images: Images,
  keys: Key[Array, 'batch'],
  iterations: int,
) -> Float[Array, 'batch']:
  """The largest singular value of each image's Jacobian, by power iteration.

  Args:
    logits_of: `(images, plain)`; plain is differentiable forwards.
    images: pixels in [0, 1].
    keys: of the first direction.
    iterations: too few make it too small.
  """
  _, backward = jax.vjp(lambda x: logits_of(x, False), images)
  forward = lambda v: jax.jvp(lambda x: logits_of(x, True), (images,), (v,))[1]
  start = norms.random_direction(images, keys, 'l2')
  step = lambda _, v: norms.unit(backward(forward(v))[0], 'l2')
  return _length(forward(jax.lax.fori_loop(0, iterations, step, start)))


def slopes(
  answer: Answer,
  images: Images,
  eps: Float[Array, ''],
  norm: str,
  keys: Key[Array, 'pairs batch'],
) -> dict[str, Array]:
  """The largest |f(u) - f(v)| / |u - v| of pairs in the ball of each image.

  A random v is between u and another point of the ball. The directed one is as
  far from u, along the gradient of |f(u) - f(v)|, and pulled into the ball.

  Returns:
    For each kind and place 'random/within' and so on, and 'pairs/random/within'
    how many pairs were there; a slope of no pair is 0.
  """

  def one(keys):
    first, second, third = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
    draw = lambda key: norms.project(
      norms.random_point(images, key, eps, norm), images, eps, norm
    )
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (), images.dtype))
    share = norms.per_image(_SHORTEST ** uniform(third))
    u = draw(first)
    v = u + share * (draw(second) - u)
    at_u, cell = answer(u)

    def away(v):
      logits, choices = answer(v)
      return jnp.square(logits - at_u).sum(), (logits, choices)

    (_, found), gradient = jax.value_and_grad(away, has_aux=True)(v)
    far = norms.per_image(norms.distance(u, v, 'l2'))
    w = norms.project(u + far * norms.unit(gradient, 'l2'), images, eps, norm)
    out = {}
    for kind, point, (logits, choices) in (
      ('random', v, found),
      ('directed', w, answer(w)),
    ):
      distance = norms.distance(u, point, 'l2')
      slope = _length(logits - at_u) / jnp.where(distance > 0, distance, 1)
      same = (choices == cell).all((1, 2, 3))
      for place, here in zip(PLACES, (same, ~same), strict=True):
        here &= distance > 0
        out[f'{kind}/{place}'] = jnp.where(here, slope, 0)
        out[f'pairs/{kind}/{place}'] = here
    return out

  found = jax.lax.map(one, keys)
  is_count = lambda name: name.startswith('pairs/')
  return {
    name: x.sum(0) if is_count(name) else x.max(0) for name, x in found.items()
  }


def jump(answer: Answer, images: Images, others: Images) -> Jump:
  """The jump at the first boundary that bisection finds between two points.

  The segment is halved until its ends are neighbouring floats; the nearer end
  has the image's choices in all blocks, the farther one has not.
  """
  _, cell = answer(images)
  is_other = lambda choices: (choices != cell).any((1, 2, 3))

  def halve(_, ends):
    near, far = ends
    middle = near + (far - near) / 2
    beyond = is_other(answer(middle)[1])
    return where(beyond, near, middle), where(beyond, middle, far)

  near, far = jax.lax.fori_loop(0, HALVINGS, halve, (images, others))
  (before, was), (after, now) = answer(near), answer(far)
  size, scale = _length(after - before), _length(before)
  distance = norms.distance(far, near, 'l2')
  back = norms.per_image(distance) * norms.unit(images - near, 'l2')

  def retreat(step, state):
    rounding, is_known = state
    logits, choices = answer(near + 2.0**step * back)
    is_same = (choices == was).all((1, 2, 3))
    new = jnp.where(is_same & ~is_known, _length(logits - before), rounding)
    return new, is_known | is_same

  # Scores round too: so near to the boundary, a step back may be beyond it.
  state = size, jnp.zeros(len(size), bool)
  rounding, _ = jax.lax.fori_loop(0, _STEPS_BACK, retreat, state)
  entered = (now & ~was).sum((2, 3))
  first = (entered > 0).argmax(1)[:, None]
  over = lambda x: x / jnp.where(scale > 0, scale, 1)
  return Jump(
    # Another compilation of the same function may round to the other side.
    found=is_other(now) & ~is_other(was),
    size=size,
    relative=over(size),
    rounding=over(rounding),
    distance=distance,
    order=jnp.take_along_axis(entered, first, 1)[:, 0],
    changed=entered.sum(1),
    flips=classes(after) != classes(before),
  )


def _length(logits):
  return jnp.sqrt(jnp.square(logits).sum(-1))
