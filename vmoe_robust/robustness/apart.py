"""The parts of a program one by one, where a loop inside it would be slow.

XLA's CPU compiler brings convolutions into the form that its fast routines take
only outside of loops and branches (github.com/jax-ml/jax/issues/12868); inside,
a gradient through a small ResNet takes some ten times as long. So on a CPU the
host turns the loop of a model that has convolutions.
"""

import jax
import numpy as np
from jaxtyping import Array

from vmoe_robust.robustness import slots as slots_lib


class Apart:
  """`slots.Program.advance`, of programs without loops and branches."""

  def __init__(
    self, program: slots_lib.Program, place: jax.sharding.NamedSharding
  ):
    """Compiles nothing; `place` is where slots lie."""
    jit = lambda part: jax.jit(part, donate_argnums=1, out_shardings=place)
    self._program = program
    self._fill, self._step = jit(program.fill), jit(program.step)
    self._last, self._agree = jit(program.last), jit(program.agree)

  def __call__(
    self, params, slots, items, enter, active, turn
  ) -> tuple[slots_lib.Slots, dict[str, Array]]:
    """See `slots.Program.advance`; the slots are donated."""
    program, more = self._program, (active, turn)
    if turn.begins:
      slots = self._fill(params, slots, items, enter, *more)
    for i in range(int(np.asarray(program.count(turn)))):
      slots = self._step(params, slots, *more, np.int32(i))
    if program.looks and turn.ends:
      slots = self._last(params, slots, *more)
    if not program.stays and bool((active & slots.state.broken).any()):
      slots = self._agree(params, slots, *more)
    return slots, slots_lib.report(slots)
