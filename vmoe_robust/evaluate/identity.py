"""By which fields a run that was cut short is known to be the same one."""

from ml_collections import ConfigDict

from vmoe_robust.config import flatten, machine_fields, unread
from vmoe_robust.data import Source


def identity(
  config: ConfigDict, step: int | None, checksum: str | None, source: Source
) -> dict[str, object]:
  """What makes a run that was cut short the same one.

  Args:
    config: of the run.
    step: of the weights that it judges, if they are of a run.
    checksum: of these weights.
    source: the examples.
  """
  free = (*machine_fields(config.data.name), *unread(config))
  return {
    'step': step,
    'the checksum of the weights': checksum,
    'the fingerprint of the examples': source.fingerprint,
  } | {
    name: value
    for name, value in flatten(config).items()
    if not name.startswith(free)
  }
