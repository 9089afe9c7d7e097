"""What an experiment is: fields with their defaults, and what is refused.

A file in `configs/` starts from `default()` and changes values; the command
line changes them further (`--config.train.steps=100`). `validate` refuses
what cannot work before anything is compiled.
"""

from vmoe_robust.config.checks import mesh_shape, validate, validate_mesh
from vmoe_robust.config.fields import (
  MACHINE_FIELDS,
  ConfigDict,
  batch_size,
  default,
  differences,
  eps_name,
  flatten,
  machine_fields,
  moe_blocks,
)
from vmoe_robust.config.judging import (
  EXPERT_MODES,
  require_routers_loss,
  validate_attack,
)
from vmoe_robust.config.limits import choose
from vmoe_robust.config.model import ROUTERS, validate_model
from vmoe_robust.config.objective import clean_images
from vmoe_robust.config.saved import from_json, to_json
from vmoe_robust.config.studies import (
  attacks,
  needs_checkpoint,
  shares_slots,
  studies,
  unread,
)
from vmoe_robust.config.study_fields import CORRUPTIONS
from vmoe_robust.errors import UserError

__all__ = [
  'CORRUPTIONS',
  'EXPERT_MODES',
  'MACHINE_FIELDS',
  'ROUTERS',
  'ConfigDict',
  'UserError',
  'attacks',
  'batch_size',
  'choose',
  'clean_images',
  'default',
  'differences',
  'eps_name',
  'flatten',
  'from_json',
  'machine_fields',
  'mesh_shape',
  'moe_blocks',
  'needs_checkpoint',
  'require_routers_loss',
  'studies',
  'shares_slots',
  'to_json',
  'unread',
  'validate',
  'validate_attack',
  'validate_mesh',
  'validate_model',
]
