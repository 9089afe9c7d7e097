"""Auto-PGD (Croce & Hein 2020, arXiv:2003.01690; in l1 arXiv:2103.01208).

PGD with momentum whose step size halves when the loss no longer rises. What the
loss is, cross-entropy or one of the logits' differences (`losses.py`), and
whether it has a target, the caller says.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vmoe_robust.attacks import norms
from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  Loss,
  State,
  Values,
  fresh,
  gradient,
  record,
  where,
)

# Of the move, the rest is that of the step before.
_MOMENTUM = 0.75
# Of a window's steps, those that must raise the loss to keep the step size.
_RISES = 0.75
# In l1: what counts as sparser, and what becomes of the step size where the
# best point is not.
_SPARSER, _SHRINK, _LEAST = 0.95, 1.5, 0.1
# In l1: radii, in those of the ball, and the share of the steps that each has.
_WIDE = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


@flax.struct.dataclass
class Memory:
  """What an image remembers between steps."""

  before: Images  # x of the step before
  best: Images  # of the highest loss in this phase
  best_slope: Images
  best_value: Values
  last_value: Values  # of the step before
  last_best: Values  # at the last checkpoint
  eta: Values  # step size
  window: Int[Array, 'batch']  # steps between the checkpoints
  since: Int[Array, 'batch']  # steps since the last one
  rises: Int[Array, 'batch']  # of those, with a higher loss than before
  halved: Bool[Array, 'batch']  # at the last checkpoint
  pixels: Values  # l1: that the next step moves
  nonzero: Values  # l1: perturbed pixels of `best` at the last checkpoint
  phase: Int[Array, 'batch']
  local: Int[Array, 'batch']  # turn within the phase


@dataclasses.dataclass(frozen=True)
class Apgd:
  """The worst of all iterates.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    iterations: updates; a step more looks at the last of them.
    floor: what the first loss is compared with, as the least that a loss can
      be. The authors' code compares it with 0, which suits cross-entropy; of
      the logarithm of cross-entropy the least is minus infinity.
  """

  norm: str
  iterations: int = 100
  floor: float = 0.0

  @property
  def steps(self) -> int:
    """A phase of n updates has n + 1 looks."""
    return sum(n + 1 for n in self._lengths())

  def start(
    self,
    images: Images,
    keys: Keys,
    eps: Float[Array, ''],
    restart: Int[Array, 'batch'],
  ) -> State:
    """See `interface.Attack`. Starts on the sphere."""
    del restart
    eps = eps.astype(images.dtype)
    if self.norm == 'l1':
      x = images + norms.noise(images, keys, 'l1')
      x = norms.project(x, images, self._radius(0) * eps, 'l1')
    else:
      sphere = norms.random_direction(images, keys, self.norm)
      x = jnp.clip(images + eps * sphere, 0, 1)
    return self.start_at(images, x, eps)

  def start_at(self, images: Images, x: Images, eps: Float[Array, '']) -> State:
    """The state of a run whose first iterate is given."""
    phase = jnp.zeros(len(images), jnp.int32)
    eps = eps.astype(images.dtype)
    return fresh(images, x, self._memory(images, x, eps, phase))

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`."""
    values, broken, slope = gradient(loss, state.x)
    own, eps = state.own, eps.astype(state.x.dtype)
    # What breaks the image outside of the ball does not count.
    final = own.phase == len(self._lengths()) - 1
    state = record(
      state, jnp.where(final, values, -jnp.inf), broken & final, slope
    ).replace(own=self._remember(own, state.x, values, slope))
    state, slope = self._check(state, slope, eps)
    move = self._move_l1 if self.norm == 'l1' else self._move
    return move(state, slope, eps)

  def _remember(self, own, x, values, slope):
    first = own.local == 0
    better = first | (values > own.best_value)
    rose = (values > own.last_value) & ~first
    return own.replace(
      best=where(better, x, own.best),
      best_slope=where(better, slope, own.best_slope),
      best_value=jnp.where(better, values, own.best_value),
      last_value=jnp.where(first, self.floor, values).astype(x.dtype),
      last_best=jnp.where(first, values, own.last_best),
      since=own.since + ~first,
      rises=own.rises + rose,
    )

  def _check(self, state, slope, eps):
    """At a checkpoint, adapts the step size and may go back to the best."""
    own = state.own
    due = (own.since == own.window) & (own.local > 0)
    if self.norm == 'l1':
      nonzero = _nonzero(own.best, state.clean)
      back = due & (nonzero / own.nonzero < _SPARSER)
      radius = self._radius(own.phase).astype(eps.dtype) * eps
      slower = jnp.maximum(own.eta / _SHRINK, _LEAST * radius)
      eta = jnp.where(due, jnp.where(back, radius, slower), own.eta)
      own = own.replace(
        eta=eta,
        pixels=jnp.where(due, nonzero / 1.5, own.pixels),
        nonzero=jnp.where(due, nonzero, own.nonzero),
      )
    else:
      stalled = ~own.halved & (own.last_best >= own.best_value)
      back = due & (stalled | (own.rises <= _RISES * own.window))
      window = jnp.maximum(
        own.window - _part(0.03, self.iterations),
        _part(0.06, self.iterations),
      )
      own = own.replace(
        eta=jnp.where(back, own.eta / 2, own.eta),
        window=jnp.where(due, window, own.window),
        halved=jnp.where(due, back, own.halved),
        last_best=jnp.where(due, own.best_value, own.last_best),
      )
    own = own.replace(
      since=jnp.where(due, 0, own.since), rises=jnp.where(due, 0, own.rises)
    )
    slope = where(back, own.best_slope, slope)
    return state.replace(x=where(back, own.best, state.x), own=own), slope

  def _move(self, state, slope, eps):
    own, clean, x = state.own, state.clean, state.x
    inertia = x - own.before
    project = lambda x: norms.project(x, clean, eps, self.norm)
    eta = norms.per_image(own.eta)
    aim = project(x + eta * norms.direction(slope, self.norm))
    keep = jnp.where(own.local == 0, 1.0, _MOMENTUM)
    keep = norms.per_image(keep.astype(x.dtype))
    aim = project(x + keep * (aim - x) + (1 - keep) * inertia)
    return state.replace(x=aim, own=own.replace(before=x, local=own.local + 1))

  def _move_l1(self, state, slope, eps):
    """A sparse step; at the end of a phase the next one begins at the best."""
    own, clean, x = state.own, state.clean, state.x
    lengths = jnp.asarray(self._lengths())
    local = own.local + 1
    over = (local > lengths[own.phase]) & (own.phase < len(lengths) - 1)
    phase = own.phase + over
    # The authors' code counts from the end, and keeps what is as steep.
    count = x[0].size - jnp.floor(x[0].size - own.pixels)
    aim = x + norms.per_image(own.eta) * norms.top_signs(slope, count)
    aim = where(over, own.best, aim)
    radius = self._radius(phase).astype(x.dtype) * eps
    aim = norms.project(aim, clean, radius, 'l1')
    goes_on = own.replace(before=x, local=local)
    begins = self._memory(clean, aim, eps, phase)
    pick = lambda yes, no: where(over, yes, no)
    return state.replace(x=aim, own=jax.tree.map(pick, begins, goes_on))

  def _memory(self, images, x, eps, phase):
    batch, dtype = len(images), images.dtype
    numbers = jnp.zeros(batch, dtype)
    counts = jnp.zeros(batch, jnp.int32)
    nonzero = _nonzero(x, images)
    if self.norm == 'l1':
      lengths = [_part(0.04, n) for n in self._lengths()]
      window = jnp.asarray(lengths, jnp.int32)[phase]
      eta = self._radius(phase).astype(dtype) * eps
    else:
      window = counts + _part(0.22, self.iterations)
      eta = numbers + 2 * eps
    return Memory(
      before=x,
      best=x,
      best_slope=jnp.zeros_like(x),
      best_value=numbers,
      last_value=numbers,
      last_best=numbers,
      eta=eta.astype(dtype),
      window=window,
      since=counts,
      rises=counts,
      halved=jnp.ones(batch, bool),
      pixels=nonzero / 1.5,
      nonzero=nonzero,
      phase=phase,
      local=counts,
    )

  def _radius(self, phase):
    return jnp.asarray([radius for radius, _ in self._phases()])[phase]

  def _phases(self):
    return _WIDE if self.norm == 'l1' else ((1.0, 1.0),)

  def _lengths(self) -> tuple[int, ...]:
    """Updates of each phase; the last has what is left."""
    shares = [share for _, share in self._phases()]
    lengths = [math.ceil(share * self.iterations) for share in shares[:-1]]
    return (*lengths, self.iterations - sum(lengths))


def _part(share: float, whole: int) -> int:
  return max(int(share * whole), 1)


def _nonzero(x: Images, clean: Images) -> Values:
  """Pixels that are perturbed, by more than rounding."""
  return (jnp.abs(x - clean) > 1e-6).sum((1, 2, 3)).astype(x.dtype)
