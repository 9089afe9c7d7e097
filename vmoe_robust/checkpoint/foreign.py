"""Weights that others released, under this project's names."""

import os

from vmoe_robust.checkpoint.npz import NpzWeights


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
