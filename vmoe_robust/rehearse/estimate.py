"""How long a program takes at least, by what the chips can do at most."""

import dataclasses
import math

from ml_collections import ConfigDict

from vmoe_robust.attacks import Stage
from vmoe_robust.config import batch_size
from vmoe_robust.cost.hardware import Chip
from vmoe_robust.cost.program import Costs


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one call of a program, if each part ran at its peak."""

  compute: float  # matrix products in bfloat16
  memory: float  # to and from HBM
  links: float  # between chips of a slice
  network: float  # between slices

  @property
  def seconds(self) -> float:
    """All at once, the longest hiding the others: no call takes less."""
    return max(dataclasses.astuple(self))

  @property
  def bound(self) -> str:
    """The part that takes the longest."""
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


def roofline(costs: Costs, chip: Chip) -> Roofline:
  """The least time of one call on chips whose limits are all known."""
  links = sum(c.count * c.links for c in costs.collectives)
  network = sum(c.count * c.network for c in costs.collectives)
  return Roofline(
    compute=costs.flops / chip.peak,
    memory=costs.bytes / chip.bandwidth,
    links=links / chip.links,
    network=network / chip.network,
  )


def calls(config: ConfigDict, stage: Stage, examples: int) -> int:
  """Runs of a stage on batches, at all radii, if every image stands to the end.

  Args:
    config: the configuration.
    stage: of its attack.
    examples: that are attacked.
  """
  batches = math.ceil(examples / batch_size(config, 'attack'))
  return batches * len(config.attack.eps) * stage.attempts
