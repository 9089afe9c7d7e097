"""How steps are carried out: one by one, or many in one compiled program.

Batches that come from the host (`Streamed`) are used one by one. A split that
lies on the devices (`Many`) is used by one program that takes any number of
steps up to a limit, in a loop whose number of turns is an argument. Only one
program is compiled, so a step is the same instructions wherever a run was
interrupted.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.cost import program
from vmoe_robust.data import (
  Resident,
  Source,
  TrainBatches,
  on_devices,
  resident_batch,
  train_batches,
)
from vmoe_robust.report.terminal import say
from vmoe_robust.train.state import TrainState
from vmoe_robust.train.step import Step

# A program of many steps takes about so many seconds at most, because a run
# that is asked to stop waits for the programs in flight, which are two.
_SECONDS = 1.0
_MOST = 512  # steps of a program; their examples and metrics need memory


def make(
  step: Step,
  config: ConfigDict,
  source: Source,
  mesh: Mesh,
  places: TrainState,
  state: dict | None,
) -> 'Streamed | Many':
  """The steps of a run, with resident data where `config.data` wants that.

  Args:
    step: one step, pure.
    config: of the run.
    source: the examples to train on.
    mesh: the device mesh.
    places: the shardings of the state.
    state: of the data, from a checkpoint.

  Raises:
    UserError: the data cannot be resident, or the state is that of others.
  """
  before = None if state is None else state.get('resident', False)
  is_resident = on_devices(config.data, source, before)
  how: dict[str, Any] = dict(
    batch_size=config.train.batch_size,
    seed=config.seed,
    sharding=mesh_lib.batch_sharding(mesh),
    state=state,
  )
  if is_resident:
    resident = Resident(config.data, source, **how)
    return Many(step, resident, places, config, mesh)
  batches = train_batches(config.data, source, **how)
  return Streamed(step, batches, places)


def compile_steps(
  steps: 'Streamed | Many', state: TrainState, wanted: float
) -> float:
  """Compiles the program, and says what a step costs; returns the seconds.

  Args:
    steps: of `make`.
    state: on its mesh.
    wanted: FLOPs of a step by formula.
  """
  start = time.perf_counter()
  compiled = steps.compile(state)
  seconds = time.perf_counter() - start
  mesh = state.step.sharding.mesh
  counted = program.flops(compiled, mesh)
  text = f'a step is {wanted / 1e9:,.2f} GFLOP by formula'
  if counted is not None:
    text += f', {counted * mesh.size / 1e9:,.2f} as compiled'
  say(f'compiled in {seconds:.1f} s; {text}')
  return seconds


class Streamed:
  """One step a program, with batches from the host."""

  def __init__(self, step: Step, batches: TrainBatches, places: TrainState):
    """`step` is pure; `places` are the shardings of the state."""
    self.batches = batches
    self._step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    self._next: dict[str, Array] | None = None
    self._compiled: jax.stages.Compiled | None = None

  def compile(self, state: TrainState) -> jax.stages.Compiled:
    """Compiles the step; to be called first."""
    self._next = next(self.batches)
    self._compiled = self._step.lower(state, self._next).compile()
    return self._compiled

  def __call__(
    self, state: TrainState, steps: int
  ) -> tuple[TrainState, dict[str, Array], int]:
    """Takes a step; returns the state, the metrics and how many steps.

    Args:
      state: is donated.
      steps: to the next event.
    """
    batch = next(self.batches) if self._next is None else self._next
    self._next = None
    return *(self._compiled or self._step)(state, batch), 1


class Many:
  """Up to `config.train.log_every` steps a program, with resident data."""

  def __init__(
    self,
    step: Step,
    batches: Resident,
    places: TrainState,
    config: ConfigDict,
    mesh: Mesh,
  ):
    """`step` is pure; `places` are the shardings of the state."""
    self.batches = batches
    self._most = min(config.train.log_every, _MOST)
    steps = many(step, config.data, mesh)
    self._steps = jax.jit(steps, donate_argnums=0, out_shardings=(places, None))
    self._compiled: jax.stages.Compiled | None = None
    self._pace = Pace()

  def compile(self, state: TrainState) -> jax.stages.Compiled:
    """Compiles the program; to be called first."""
    rows = self.batches.take(0, self._most)
    count = np.int32(0)
    lowered = self._steps.lower(state, self.batches.arrays, rows, count)
    self._compiled = lowered.compile()
    return self._compiled

  def __call__(
    self, state: TrainState, steps: int
  ) -> tuple[TrainState, dict[str, Array], int]:
    """Takes steps; returns the state, their metrics and how many they are.

    Args:
      state: is donated.
      steps: to the next event; fewer are taken if they would last long.
    """
    steps = min(steps, self._most, self._pace.steps())
    rows = self.batches.take(steps, self._most)
    state, metrics = (self._compiled or self._steps)(
      state, self.batches.arrays, rows, np.int32(steps)
    )
    self._pace.started(steps, metrics)
    return state, metrics, steps


class Pace:
  """How many steps make a program of a bounded time."""

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    """Nothing is known yet."""
    self._clock, self._ready = clock, 0.0
    self._running: list[tuple[float, int, dict[str, Array]]] = []
    # Seconds a step; of several, because a pause of the host looks like a
    # long program.
    self._seconds: deque[float] = deque(maxlen=4)

  def steps(self) -> int:
    """Steps of the next program: one at first, then about a second's.

    Waits for the program before the last one, so that at most two are in
    flight.
    """
    if jax.process_count() > 1:  # whose clocks differ
      return _MOST
    if len(self._running) > 1:
      self._measure()
    if not self._seconds:
      return 1
    return max(1, int(_SECONDS / max(min(self._seconds), 1e-9)))

  def started(self, steps: int, results: dict[str, Array]) -> None:
    """Called when a program was started, with what it will give."""
    if jax.process_count() == 1:
      self._running.append((self._clock(), steps, results))

  def _measure(self):
    (started, steps, results), (_, next_steps, _) = self._running
    jax.block_until_ready(results)
    begin, self._ready = max(started, self._ready), self._clock()
    # Where starting a program waits for its end, as loops on a GPU may, this
    # was the time of the next one. The fewer steps err on the safe side.
    seconds = (self._ready - begin) / min(steps, next_steps)
    self._seconds.append(seconds)
    del self._running[0]


def many(step: Step, data: ConfigDict, mesh: Mesh) -> Callable:
  """Any number of steps as one pure function.

  Args:
    step: one of them.
    data: `config.data`.
    mesh: the batch lies on it.

  Returns:
    `(state, arrays, rows, count) -> (state, metrics)`, with what `Resident`
    has and takes, and the number of steps. Metrics have an axis of steps, which
    is 0 behind the last one.
  """

  def batch(arrays, rows, i):
    index, epoch = rows['index'][i], rows['epoch'][i]
    found = resident_batch(arrays, index, epoch, data)
    place = mesh_lib.batch_sharding(mesh)
    return jax.lax.with_sharding_constraint(found, place)

  def steps(state, arrays, rows, count):
    def one(i, carry):
      state, metrics = carry
      state, new = step(state, batch(arrays, rows, i))
      put = lambda all_, one: all_.at[i].set(one)
      return state, jax.tree.map(put, metrics, new)

    most = len(rows['index'])
    shapes = jax.eval_shape(lambda s: step(s, batch(arrays, rows, 0))[1], state)
    empty = lambda x: jnp.zeros((most, *x.shape), x.dtype)
    metrics = jax.tree.map(empty, shapes)
    return jax.lax.fori_loop(0, count, one, (state, metrics))

  return steps
