"""Regression on inputs in blocks, with noise: routing filters, or misleads.

After "Robustness of Mixtures of Experts to Feature Noise" (arXiv:2601.14792),
whose setting is inputs of latent modular structure under feature noise. The
construction and the formulas here are our own; docs/theory.md derives them.
"""

import numpy as np
from jaxtyping import Float, Int

Values = Float[np.ndarray, 'points']


def risks(experts: int, noise: float) -> tuple[float, float, float]:
  """Squared errors of the best linear predictors, for functions of norm 1.

  Args:
    experts: as many blocks.
    noise: deviation of the noise in each coordinate; the signal's is 1.

  Returns:
    Of the dense predictor, of the expert of the right block, and of an expert
    that is given another block.
  """
  v = noise**2
  shrink = 1 / (1 + v)
  return v / (v + 1 / experts), v * shrink, 1 + v * shrink**2


def reversal(experts: int, noise: float) -> float:
  """The share of wrong decisions at which routing is no better than dense."""
  dense, right, wrong = risks(experts, noise)
  return (dense - right) / (wrong - right)


def draw(
  rng: np.random.Generator, functions: np.ndarray, noise: float, points: int
) -> tuple[np.ndarray, Values, Int[np.ndarray, 'points']]:
  """Noisy inputs [points, blocks, size], targets, and the block of each."""
  blocks, size = functions.shape
  cell = rng.integers(0, blocks, points)
  signal = rng.standard_normal((points, size))
  x = noise * rng.standard_normal((points, blocks, size))
  x[np.arange(points), cell] += signal
  return x, (functions[cell] * signal).sum(1), cell


def functions(
  rng: np.random.Generator, experts: int, dimension: int
) -> Float[np.ndarray, 'blocks size']:
  """A linear function of norm 1 for each block."""
  w = rng.standard_normal((experts, dimension // experts))
  return w / np.linalg.norm(w, axis=1, keepdims=True)


def fit(
  x: np.ndarray, y: Values, cell: np.ndarray
) -> tuple[Float[np.ndarray, 'blocks size'], Float[np.ndarray, 'blocks size']]:
  """Least squares: one predictor of all inputs, and an expert for each block.

  Both have as many parameters as the input has coordinates.
  """
  blocks, size = x.shape[1:]
  dense = np.linalg.lstsq(x.reshape(len(x), -1), y)[0].reshape(blocks, size)
  experts = [
    np.linalg.lstsq(x[cell == block, block], y[cell == block])[0]
    for block in range(blocks)
  ]
  return dense, np.stack(experts)


def misrouted(
  rng: np.random.Generator, cell: np.ndarray, blocks: int, share: float
) -> Int[np.ndarray, 'points']:
  """Decisions of which a share, at random, is another block than the right."""
  other = (cell + rng.integers(1, blocks, len(cell))) % blocks
  return np.where(rng.random(len(cell)) < share, other, cell)


def by_energy(x: np.ndarray) -> Int[np.ndarray, 'points']:
  """The block of the largest norm: the most likely one, for Gaussian signal."""
  return (x**2).sum(2).argmax(1)


def routed(experts: np.ndarray, x: np.ndarray, taken: np.ndarray) -> Values:
  """What the expert of the block that is taken says of that block."""
  return (experts[taken] * x[np.arange(len(x)), taken]).sum(1)
