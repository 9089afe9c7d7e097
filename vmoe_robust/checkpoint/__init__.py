"""Checkpoints: Orbax behind a thin wrapper, and weights from elsewhere."""

from vmoe_robust.checkpoint.adapt import HEAD, WAYS, Plan, matches, plan, take
from vmoe_robust.checkpoint.manager import Checkpoints, abstract
from vmoe_robust.checkpoint.own import RunWeights
from vmoe_robust.checkpoint.trees import flat, require_same, shapes_of
from vmoe_robust.checkpoint.weights import Weights, open_weights
from vmoe_robust.checkpoint.workdir import (
  configs_by_which_measured,
  fingerprint,
  locate,
  read_class_names,
  read_config,
  save_config,
)

__all__ = [
  'HEAD',
  'Checkpoints',
  'Plan',
  'RunWeights',
  'WAYS',
  'Weights',
  'abstract',
  'configs_by_which_measured',
  'fingerprint',
  'flat',
  'locate',
  'matches',
  'open_weights',
  'plan',
  'read_class_names',
  'read_config',
  'require_same',
  'save_config',
  'shapes_of',
  'take',
]
