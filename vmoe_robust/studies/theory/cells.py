"""Random labels in cells: what fixed routing does to the Lipschitz constant.

docs/theory.md derives the formulas and says when they hold.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

Points = Float[np.ndarray, 'points dimension']
Labels = Float[np.ndarray, 'points']

# Of the fits of MLPs: mean squared error that ends them, and most steps.
FITTED, _MOST_STEPS = 1e-3, 5000
_LEARNING_RATE = 0.01


def draw(
  rng: np.random.Generator, points: int, dimension: int
) -> tuple[Points, Labels]:
  """Random points of norm 1, with random labels -1 and 1."""
  x = rng.standard_normal((points, dimension))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x, rng.choice([-1.0, 1.0], points)


def min_norm(x: Points, y: Labels) -> Float[np.ndarray, 'dimension']:
  """The smallest w with x @ w = y: x^T (x x^T)^-1 y.

  Its norm is the Lipschitz constant of the linear function, in L2.
  """
  return x.T @ np.linalg.solve(x @ x.T, y)


def largest_expert(x: Points, y: Labels, experts: int) -> float:
  """The largest norm of the experts' w, a cell of n / E points for each."""
  cells = zip(np.split(x, experts), np.split(y, experts), strict=True)
  return max(float(np.linalg.norm(min_norm(*cell))) for cell in cells)


def expected_norm(points: int, dimension: int) -> float:
  """sqrt(n / (1 - n / d)), which the norm of `min_norm` is near for large n."""
  return float(np.sqrt(points / (1 - points / dimension)))


def law(points: int, dimension: int, parameters: int) -> float:
  """sqrt(n d / p) of arXiv:2105.12806 (Bubeck, Sellke), without constants."""
  return float(np.sqrt(points * dimension / parameters))


def mlp_gradients(
  key: Array,
  x: Float[Array, 'experts points dimension'],
  y: Float[Array, 'experts points'],
  width: int,
) -> tuple[Float[Array, 'experts points'], Float[Array, 'experts points']]:
  """Fits a two-layer ReLU MLP to each cell, and looks at its slope.

  All are fitted by Adam on all points until each one's mean squared error is
  below 0.001, or for 5000 steps.

  Args:
    key: of the weights at the start.
    x: the points of each cell.
    y: their labels.
    width: of the hidden layer.

  Returns:
    The norm of the gradient at each point of a cell, and the output there.
  """
  start = jax.vmap(lambda key: _start(key, x.shape[-1], width))
  weights = start(jax.random.split(key, len(x)))
  optimizer = optax.adam(_LEARNING_RATE)

  def error(weights):
    found = jax.vmap(jax.vmap(_mlp, (None, 0)))(weights, x)
    each = ((found - y) ** 2).mean(1)
    return each.sum(), each

  def step(state):
    weights, memory, _, count = state
    (_, each), slope = jax.value_and_grad(error, has_aux=True)(weights)
    # A cell that is fitted stays as it is, so that each ends at the same error.
    open_ = each > FITTED
    update, memory = optimizer.update(slope, memory)
    hold = lambda u: jnp.where(open_.reshape(-1, *(1,) * (u.ndim - 1)), u, 0)
    weights = optax.apply_updates(weights, jax.tree.map(hold, update))
    return weights, memory, each.max(), count + 1

  def goes_on(state):
    return (state[2] > FITTED) & (state[3] < _MOST_STEPS)

  state = weights, optimizer.init(weights), jnp.inf, 0
  weights = jax.lax.while_loop(goes_on, step, state)[0]
  both = jax.vmap(jax.vmap(jax.value_and_grad(_mlp, 1), (None, 0)))
  value, slope = both(weights, x)
  return jnp.linalg.norm(slope, axis=-1), value


def _start(key, dimension, width):
  first, second = jax.random.split(key)
  return {
    'in': jax.random.normal(first, (dimension, width)) * (2 / dimension) ** 0.5,
    'bias': jnp.zeros(width),
    'out': jax.random.normal(second, (width,)) / width**0.5,
  }


def _mlp(weights, x):
  hidden = jax.nn.relu(x @ weights['in'] + weights['bias'])
  return hidden @ weights['out']
