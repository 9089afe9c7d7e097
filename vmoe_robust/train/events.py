"""Between which steps the host has something to do."""

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint.policy import ASK_EVERY


def due(step: int, every: int) -> bool:
  """Whether something that happens every so many steps follows this one."""
  return every > 0 and step % every == 0


def steps_ahead(config: ConfigDict, step: int) -> int:
  """Steps from here to the next at which something happens.

  That is a line of the log, an evaluation, an attack, a save, the start or the
  end of a trace, or the end. The same on every process.

  Args:
    config: of the run.
    step: the last one that was taken; before the end.
  """
  every = [
    config.train.log_every,
    config.eval.every_steps,
    config.attack.every_steps,
    config.save.every_steps,
  ]
  if config.save.every_minutes and jax.process_count() > 1:
    every.append(ASK_EVERY)
  ends = [config.train.steps]
  if config.train.profile_steps:
    first, last = config.train.profile_steps
    ends += [first - 1, last]
  return min(
    *(e - step for e in ends if e > step),
    *(n - step % n for n in every if n),
  )
