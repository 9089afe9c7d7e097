"""What the parts of an experiment cost, by formula: nothing is run or read."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.attacks.passes import forward_passes as attack_passes
from vmoe_robust.config import UserError
from vmoe_robust.data import known
from vmoe_robust.evaluate import target
from vmoe_robust.evaluate.combine import combine_saved
from vmoe_robust.experiment.parts import Part
from vmoe_robust.models import flops
from vmoe_robust.train.objective import forward_passes


def costs(parts: Sequence[Part]) -> list[str]:
  """Of each part, what it costs at most, as text.

  Of a training its active FLOPs, and those of the attack that ends it, if it
  has one. Of an attack too, if every image stands to the end and is judged
  once. Of a study the number of images, for it has no formula.
  """
  models = {part.name: part.config for part in parts if part.mode == 'train'}
  return [_cost(part, models) for part in parts]


def _cost(part: Part, models: Mapping[str, ConfigDict]) -> str:
  trains, config = part.mode == 'train', part.config
  if not trains:  # on the model and the data of the run that it judges
    config = combine_saved(config, models[part.needs])
    config.data.eval_split = config.data.split
  try:
    config, images = known.resolve(config)
  except UserError:
    return 'not known'
  forward = flops.forward(
    config.model, config.data.image_size, config.model.channels
  )
  attack = 0
  if part.mode == 'attack' or (trains and config.attack.at_end):
    attack = _passes(config) * images
  if trains:
    steps = config.train.steps * config.train.batch_size
    passes = steps * forward_passes(config.train.objective)
    return flop(forward * (passes + attack))
  if part.mode == 'attack':
    return flop(forward * attack)
  return f'{images:,} images'


def _passes(config: ConfigDict) -> int:
  """Forward passes of an image under `config.attack`."""
  each = sum(
    stage.attempts * attack_passes(stage, config.model.num_classes, 1)
    for stage in target.ensemble(config).stages
  )
  return each * len(config.attack.eps)


def flop(count: float) -> str:
  """A count of operations as '12.3 TFLOP'."""
  for unit, size in (('M', 1e6), ('G', 1e9), ('T', 1e12), ('P', 1e15)):
    if count < 999.5 * size:
      return f'{count / size:.3g} {unit}FLOP'
  return f'{count / 1e18:,.3g} EFLOP'
