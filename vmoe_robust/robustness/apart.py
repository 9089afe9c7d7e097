"""The parts of a program one by one, where a loop inside it would be slow.

XLA's CPU compiler brings convolutions into the form that its fast routines take
only outside of loops and branches (github.com/jax-ml/jax/issues/12868); inside,
a gradient through a small ResNet takes some ten times as long. So on a CPU the
host turns the loop of a model that has convolutions.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

from vmoe_robust.robustness import slots as slots_lib


class Apart:
  """`slots.Program.advance`, of programs without loops and branches."""

  def __init__(
    self,
    program: slots_lib.Program,
    place: jax.sharding.NamedSharding,
    timed: Callable,
  ):
    """Compiles nothing.

    Args:
      program: whose parts are called.
      place: where slots lie.
      timed: see `programs.Programs.timed`; its key is a part's name and size.
    """
    self._program, self._timed = program, timed
    parts = (program.fill, program.step, program.last, program.agree)
    self._parts = {
      part.__name__: jax.jit(part, donate_argnums=1, out_shardings=place)
      for part in parts
    }

  def __call__(
    self, params, slots, items, enter, active, turn
  ) -> tuple[slots_lib.Slots, dict[str, Array]]:
    """See `slots.Program.advance`; the slots are donated."""
    program = self._program

    def call(name, *args):
      key = name, len(active)
      return self._timed(key, self._parts[name], params, slots, *args)

    if turn.begins:
      slots = call('fill', items, enter, active, turn)
    for i in range(int(np.asarray(program.count(turn)))):
      slots = call('step', active, turn, np.int32(i))
    if program.looks and turn.ends:
      slots = call('last', active, turn)
    if not program.stays and bool((active & slots.state.broken).any()):
      slots = call('agree', active, turn)
    return slots, slots_lib.report(slots)
