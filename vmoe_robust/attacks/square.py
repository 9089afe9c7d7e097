"""Square attack (Andriushchenko et al. 2020, arXiv:1912.00049).

Random search by squares: needs no gradient. Each image draws squares of its
own, where the authors' code shares them within a batch.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vmoe_robust.attacks import norms
from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  Loss,
  State,
  fresh,
  record,
)

# The share of pixels in a square, halved after so many queries.
_SHARE = 0.8
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclasses.dataclass(frozen=True)
class Square:
  """The point of the highest loss, which a query may replace.

  Args:
    norm: 'linf', 'l2' or 'l1' (as arXiv:2103.01208 has it).
    queries: after the first one.
  """

  norm: str
  queries: int = 5000

  @property
  def steps(self) -> int:
    """The first query and those after it."""
    return self.queries + 1

  def start(
    self,
    images: Images,
    keys: Keys,
    eps: Float[Array, ''],
    restart: Int[Array, 'batch'],
  ) -> State:
    """See `interface.Attack`."""
    del restart
    begin = _stripes if self.norm == 'linf' else partial(_tiles, self.norm)
    eps = eps.astype(images.dtype)
    x = jax.vmap(begin, (0, 0, None))(images, keys, eps)
    return fresh(images, x, jax.random.key_data(keys))

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`."""
    query = state.turn  # 0 for the first
    eps = eps.astype(state.x.dtype)
    state = record(state, *loss(state.x))
    keys = jax.vmap(jax.random.fold_in)(
      jax.random.wrap_key_data(state.own), query
    )
    draw = _square if self.norm == 'linf' else partial(_two_squares, self.norm)
    stage = jnp.searchsorted(jnp.asarray(_HALVED), query)
    x = jax.vmap(draw, (0, 0, 0, 0, None))(
      keys, state.clean, state.x_adv, stage, eps
    )
    return state.replace(x=x)


def sides(height: int, width: int, least: int) -> list[int]:
  """The side of the square in each stage of the search."""
  found = []
  for stage in range(len(_HALVED) + 1):
    side = max(round(math.sqrt(_SHARE / 2**stage * height * width)), least)
    if least > 1 and side % 2 == 0:
      side += 1
    found.append(min(side, height, width))
  return found


def _stripes(image, key, eps):
  signs = jax.random.rademacher(key, (1, *image.shape[1:]), image.dtype)
  return jnp.clip(image + eps * signs, 0, 1)


def _square(key, image, best, stage, eps):
  height, width, channels = image.shape
  for_place, for_sign = jax.random.split(key)
  side = jnp.asarray(sides(height, width, 1))[stage]
  inside = _window(for_place, height, width, side)[2]
  sign = jax.random.rademacher(for_sign, (channels,), image.dtype)
  x = best + 2 * eps * sign * inside[:, :, None]
  return jnp.clip(jnp.clip(x, image - eps, image + eps), 0, 1)


def _window(key, height, width, side):
  """A random place of a square, and where it is."""
  spot = jax.random.uniform(key, (2,), jnp.float32)
  # The authors' code never reaches the last row and column, which are much of
  # a small image.
  places = jnp.asarray([height, width]) - side + 1
  top, left = jnp.floor(spot * places).astype(jnp.int32)
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
  inside = (rows >= top) & (rows < top + side)
  inside &= (columns >= left) & (columns < left + side)
  return top, left, inside


def bump(height: int, width: int, norm: str) -> np.ndarray:
  """A hill whose top is in the middle, of length 1; in l1 a steeper one."""
  out = np.zeros((height, width))
  power = {'l2': 2, 'l1': 4}[norm]
  middle = np.array([height // 2, width // 2])
  for i in range(max(height, width) // 2 + 1):
    low, high = np.maximum(middle - i, 0), middle + i + 1
    out[low[0] : high[0], low[1] : high[1]] += 1 / (i + 1) ** power
  return out / max(float(_size(out, norm)), 1e-12)


def pattern(side: int, norm: str) -> np.ndarray:
  """A hill and a valley that fill a square, of length 1."""
  half = side // 2
  parts = [-bump(side - half, side, norm)]
  if half:
    parts.insert(0, bump(half, side, norm))
  out = np.concatenate(parts)
  return out / _size(out, norm)


def _size(x, norm):
  return np.abs(x).sum() if norm == 'l1' else np.linalg.norm(x)


def _tiles(norm, image, key, eps):
  height, width, channels = image.shape
  # Fives of them fill the height; an image too small for that has the largest
  # that fit.
  side = max(min(height // 5, width), 1)
  above, left = (max((n - 5 * side) // 2, 0) for n in (height, width))
  tile = jnp.asarray(pattern(side, norm), image.dtype)
  down, across = height // side, width // side
  for_turn, for_sign = jax.random.split(key)
  turned = jax.random.bernoulli(for_turn, shape=(down, across))
  turned = turned[:, :, None, None]
  signs = jax.random.rademacher(
    for_sign, (down, across, 1, 1, channels), image.dtype
  )
  tiles = jnp.where(turned, tile.T, tile)[..., None] * signs
  delta = tiles.transpose(0, 2, 1, 3, 4)
  delta = delta.reshape(down * side, across * side, channels)
  delta = jnp.pad(delta, ((above, height), (left, width), (0, 0)))
  delta = delta[:height, :width]
  if norm == 'l1':  # each tile has length 1, all of them together more
    return _projected(image + delta, image, eps, norm)
  return jnp.clip(image + eps * _unit(delta), 0, 1)


def _two_squares(norm, key, image, best, stage, eps):
  """Moves what one window spends to another, in the form of a new pattern."""
  height, width, channels = image.shape
  for_place, for_other, for_turn, for_sign = jax.random.split(key, 4)
  choices = sides(height, width, 3)
  side = jnp.asarray(choices)[stage]
  top, left, here = _window(for_place, height, width, side)
  there = _window(for_other, height, width, side)[2]
  here, there = here[:, :, None], there[:, :, None]
  delta = best - image
  by, root = (jnp.square, jnp.sqrt) if norm == 'l2' else (jnp.abs, lambda x: x)
  spend = lambda part: by(delta * part).sum((0, 1), keepdims=True)
  patterns = np.zeros((len(choices), height, width))
  for place, size in zip(patterns, choices, strict=True):
    place[:size, :size] = pattern(size, norm)
  form = jnp.asarray(patterns, image.dtype)[stage]
  form = jnp.where(jax.random.bernoulli(for_turn), _turn(form), form)
  form = jnp.roll(form, (top, left), (0, 1))[:, :, None]
  sign = jax.random.rademacher(for_sign, (channels,), image.dtype)
  new = form * sign + delta * here / (1e-12 + root(spend(here)))
  new = jnp.where(here, new, 0)
  unspent = jnp.maximum(by(eps) - by(delta).sum(), 0) / channels
  budget = root(unspent + spend(here | there))
  if norm == 'l1':  # as the authors have it: more than the ball, then projected
    budget *= channels
  new = new / (1e-12 + root(by(new).sum((0, 1), keepdims=True))) * budget
  delta = jnp.where(here, new, jnp.where(there, 0, delta))
  if norm == 'l2':
    delta = eps * _unit(delta)
  return _projected(image + delta, image, eps, norm)


def _projected(x, image, eps, norm):
  return norms.project(x[None], image[None], eps, norm)[0]


def _turn(form):
  """Transposes the square in the corner of an image that is no square."""
  height, width = form.shape
  side = min(height, width)
  return form.at[:side, :side].set(form[:side, :side].T)


def _unit(delta):
  return delta / (1e-12 + jnp.sqrt(jnp.square(delta).sum()))
