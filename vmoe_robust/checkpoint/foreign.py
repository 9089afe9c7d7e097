"""Weights that others released, under this project's names."""

import os

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from vmoe_robust.checkpoint.npz import NpzWeights
from vmoe_robust.config import UserError


def read_npz(path: str | os.PathLike) -> dict:
  """The weights of a released ViT .npz file as a nested tree.

  Raises:
    UserError: the file is missing, or is no such file.
  """
  weights = NpzWeights(os.fspath(path), 'config.init_from')
  flat = {name: weights.read(name) for name in weights.shapes}
  weights.close()
  tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split('/')
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[leaf] = value
  return tree


def resize_positions(
  embedding: Float[np.ndarray, '1 tokens dim'], tokens: int
) -> Float[np.ndarray, '1 {tokens} dim']:
  """Position embeddings of another resolution, linear on the square grid.

  A first row that the grid does not account for is the class token's, and is
  kept.

  Raises:
    UserError: one of the two grids is not square.
  """
  old, new = _front(embedding.shape[1]), _front(tokens)
  if old is None or new is None:
    raise UserError(
      f'position embeddings of {embedding.shape[1]} tokens cannot be resized '
      f'to {tokens}: one of them is not a square grid'
    )
  # A new token of the class starts from zero; a superfluous one is left out.
  front = np.zeros((1, new, embedding.shape[2]), embedding.dtype)
  front[:, : min(old, new)] = embedding[:, : min(old, new)]
  grid = embedding[0, old:]
  side, wanted = _side(len(grid)), _side(tokens - new)
  grid = grid.reshape(side, side, -1)
  zoom = (wanted / side, wanted / side, 1)
  grid = ndimage.zoom(grid, zoom, order=1).reshape(1, wanted**2, -1)
  return np.concatenate([front, grid], axis=1)


def _side(count: int) -> int:
  return round(count**0.5)


def _front(tokens: int) -> int | None:
  """Tokens before the square grid: 0 or 1; None if neither is square."""
  for front in (0, 1):
    if _side(tokens - front) ** 2 == tokens - front:
      return front
  return None
