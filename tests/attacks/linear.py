"""Linear models of two classes, whose robust accuracy has an exact answer."""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust.attacks import LOSSES, Attack


class Linear:
  """Images of class 0, whose lead over class 1 is `weights . x + bias`.

  The bias of each image makes its lead a share of the most that an attacker can
  take away in the ball and the box: below 1 the image falls.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    norm: str,
    eps: float,
    *,
    batch: int = 16,
    scale: float = 1.0,
    shares: tuple[float, float] = (0.5, 1.5),
    binary: bool = False,
  ):
    """Draws weights and images; of binary images all pixels are 0 or 1."""
    rng = np.random.default_rng(0)
    self.norm, self.eps, self.scale = norm, eps, scale
    images = rng.uniform(size=(batch, *shape))
    self.images = np.float32(np.round(images) if binary else images)
    self.weights = np.float32(rng.normal(size=shape))
    self.gains = np.array(
      [most(x, -self.weights, eps, norm) for x in self.images]
    )
    shares = np.linspace(*shares, batch)
    flat = np.float64(self.images * self.weights).sum((1, 2, 3))
    self.bias = np.float32(shares * self.gains - flat)
    self.leads = shares * self.gains
    self.fall = shares < 1

  def logits(self, x: jax.Array) -> jax.Array:
    """Of classes 0 and 1."""
    lead = (x * self.weights).sum((1, 2, 3)) + self.bias.astype(x.dtype)
    return self.scale * jnp.stack([lead, 0 * lead], 1)

  def loss(self, name: str) -> Callable:
    """A loss of `LOSSES` in the form that attacks ask for."""
    label = jnp.zeros(len(self.images), jnp.int32)

    def loss(x):
      logits = self.logits(x)
      return LOSSES[name](logits, label, label + 1), logits.argmax(-1) != 0

    return loss

  def run(self, attack: Attack, name: str) -> Callable:
    """`(images, eps) -> x_adv` of one whole run."""
    batch = len(self.images)
    keys = jax.random.split(jax.random.key(0), batch)
    loss = self.loss(name)

    def run(x, eps):
      state = attack.start(x, keys, eps, jnp.zeros(batch, jnp.int32))
      advance = lambda _, state: attack.step(loss, state, eps)
      return jax.lax.fori_loop(0, attack.steps, advance, state).x_adv

    return run

  def attacked(self, attack: Attack, name: str) -> np.ndarray:
    """The images that one run of an attack leaves.

    What the model is of is no constant of the program, so that models of one
    shape share what was compiled.
    """

    def run(x, eps, weights, bias, scale):
      model = copy.copy(self)
      model.weights, model.bias, model.scale = weights, bias, scale
      return model.run(attack, name)(x, eps)

    numbers = (self.images, self.eps, self.weights, self.bias, self.scale)
    return np.asarray(jax.jit(run)(*(jnp.float32(one) for one in numbers)))

  def fallen(self, x_adv: np.ndarray) -> np.ndarray:
    """Which images of class 0 are taken for class 1."""
    return np.asarray(self.logits(jnp.asarray(x_adv)).argmax(-1)) == 1

  def gained(self, x_adv: np.ndarray) -> np.ndarray:
    """What was taken from the lead, as a share of the most that can be."""
    moves = np.float64(x_adv) - np.float64(self.images)
    return -(moves * self.weights).sum((1, 2, 3)) / self.gains


def most(x: np.ndarray, weights: np.ndarray, eps: float, norm: str) -> float:
  """The most that a move in the ball and the box adds to weights . x.

  Linf: each pixel goes as far as it may. L1: pixels of the largest weights
  first, each as far as the box allows (a fractional knapsack). L2: clip(t *
  weights) with the t that uses up the radius.
  """
  x, weights = np.float64(x).ravel(), np.float64(weights).ravel()
  room = np.where(weights > 0, 1 - x, x)
  size = np.abs(weights)
  if norm == 'linf':
    return float((size * np.minimum(room, eps)).sum())
  if norm == 'l1':
    order = np.argsort(-size)
    before = np.cumsum(room[order]) - room[order]
    return float((size[order] * np.clip(eps - before, 0, room[order])).sum())
  low, high = 0.0, 1e12
  for _ in range(200):
    middle = (low + high) / 2
    long = np.linalg.norm(np.minimum(middle * size, room)) > eps
    low, high = (low, middle) if long else (middle, high)
  return float((size * np.minimum(low * size, room)).sum())
