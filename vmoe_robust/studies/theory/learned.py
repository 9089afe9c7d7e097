"""Learned routing: the Jacobian of experts that agree and that disagree.

y = sum_i p_i(x) w_i . x with p = softmax(R x), so its gradient in x is the
expert term sum_i p_i w_i and the gate term sum_i (w_i . x) grad p_i.
docs/theory.md derives the form of the gate term that is used here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

DIMENSION, EXPERTS = 16, 4
_STEPS, _LEARNING_RATE = 1500, 0.02

Vector = Float[Array, 'dimension']
Matrix = Float[Array, 'experts dimension']


def output(router: Matrix, experts: Matrix, x: Vector) -> Float[Array, '']:
  """The routed sum of linear experts."""
  return jax.nn.softmax(router @ x) @ (experts @ x)


def terms(router: Matrix, experts: Matrix, x: Vector) -> tuple[Vector, Vector]:
  """The expert term and the gate term of the gradient; their sum is it.

  The gate term is 1/2 sum_ij p_i p_j (f_i - f_j) (grad s_i - grad s_j): it
  vanishes where experts agree, and where one gate is 1.
  """
  p, f = jax.nn.softmax(router @ x), experts @ x
  pairs = p[:, None] * p * (f[:, None] - f)
  gate = jnp.einsum('ij,ijd->d', pairs, router[:, None] - router) / 2
  return p @ experts, gate


def teacher(
  rng: np.random.Generator, disagreement: float
) -> tuple[Float[np.ndarray, 'cells dimension'], ...]:
  """The directions of the cells, and a linear function of norm 1 for each.

  Args:
    rng: what is drawn.
    disagreement: the sine of the angle between each function and the one that
      all share; 0: all are the same, 1: they are orthogonal.
  """
  drawn = rng.standard_normal((DIMENSION, DIMENSION))
  basis = np.linalg.qr(drawn)[0]
  cells, shared, own = np.split(basis, [EXPERTS, EXPERTS + 1])
  own = own[:EXPERTS]
  agreement = np.sqrt(1 - disagreement**2)
  return cells, agreement * shared + disagreement * own


def points(
  rng: np.random.Generator,
  cells: np.ndarray,
  functions: np.ndarray,
  count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Gaussian points, the teacher's values, and their cells."""
  x = rng.standard_normal((count, DIMENSION))
  cell = (x @ cells.T).argmax(1)
  return x, (functions[cell] * x).sum(1), cell


@jax.jit
def fit(key: Array, x: Array, y: Array) -> tuple[Matrix, Matrix]:
  """Router and experts that are learned together, by Adam on all points."""
  first, second = jax.random.split(key)
  shape = EXPERTS, DIMENSION
  weights = (
    jax.random.normal(first, shape) / 4,
    jax.random.normal(second, shape) / 4,
  )
  optimizer = optax.adam(_LEARNING_RATE)

  def error(weights):
    router, experts = weights
    found = jax.vmap(lambda x: output(router, experts, x))(x)
    return ((found - y) ** 2).mean()

  def step(state, _):
    weights, memory = state
    update, memory = optimizer.update(jax.grad(error)(weights), memory)
    return (optax.apply_updates(weights, update), memory), None

  start = weights, optimizer.init(weights)
  (weights, _), _ = jax.lax.scan(step, start, length=_STEPS)
  return weights


@jax.jit
def norms(router: Matrix, experts: Matrix, x: Array) -> dict[str, Array]:
  """Of each point: the norms of the terms and of their sum, and the output."""

  def one(x):
    of_experts, gate = terms(router, experts, x)
    return {
      'expert_term': jnp.linalg.norm(of_experts),
      'gate_term': jnp.linalg.norm(gate),
      'gradient': jnp.linalg.norm(of_experts + gate),
      'output': output(router, experts, x),
      'expert': (router @ x).argmax(),
    }

  return jax.vmap(one)(x)
