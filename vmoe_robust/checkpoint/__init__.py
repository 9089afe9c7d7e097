"""Checkpoints: Orbax behind a thin wrapper, and weights from elsewhere."""

from vmoe_robust.checkpoint.foreign import read_npz, resize_positions
from vmoe_robust.checkpoint.manager import Checkpoints, abstract
from vmoe_robust.checkpoint.weights import Weights, open_weights
from vmoe_robust.checkpoint.workdir import (
  fingerprint,
  locate,
  read_config,
  save_config,
)

__all__ = [
  'Checkpoints',
  'Weights',
  'abstract',
  'fingerprint',
  'locate',
  'open_weights',
  'read_config',
  'read_npz',
  'resize_positions',
  'save_config',
]
