"""Slots of a batch, each with an image that entered when there was room.

A program advances all slots by some steps; an image that is broken or at its
end leaves, and another image takes its slot. So every batch is full, of one
shape and compiled once, however unevenly images fall (continuous batching).
Images that leave are copied to the outbox, where they are judged.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree

from vmoe_robust.attacks import LOSSES, Stage, State
from vmoe_robust.attacks.fab import Fab
from vmoe_robust.attacks.interface import record, where
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import (
  JUDGE_DRAWS,
  Target,
  as_floats,
  log_probabilities,
  predict,
)


@flax.struct.dataclass
class Items:
  """Images that may take a slot."""

  image: Array  # uint8, or floats in [0, 1]
  label: Array  # int32 [batch], or which classes [batch, classes]
  target: Int[Array, 'batch']  # a class; the label if the stage has no target
  index: Int[Array, 'batch']  # the example's number
  attempt: Int[Array, 'batch']  # which run on this image


@flax.struct.dataclass
class Goal:
  """What a loss is given besides what the model answers."""

  label: Array  # as of `Items`
  target: Int[Array, 'batch']
  context: PyTree  # of `Target.context`; () without one


class Slots(flax.struct.PyTreeNode):
  """Images under attack."""

  state: State
  goal: Goal


@flax.struct.dataclass
class Turn:
  """What the host says of a call; no array of the batch."""

  eps: ArrayLike
  count: int | np.integer | Array  # steps to take
  begins: ArrayLike  # whether any image enters
  ends: bool | np.bool_ | Array  # whether all images come to their end together
  tick: ArrayLike  # counts the calls


class Program:
  """The programs of one stage, for whatever number of slots."""

  def __init__(
    self, target: Target, stage: Stage, seed: int, number: int, draws: int = 1
  ):
    """Compiles nothing.

    Args:
      target: what is attacked.
      stage: the attack.
      seed: of all that is drawn.
      number: of the stage, so that stages draw unlike each other.
      draws: of a random model, over which its loss is a mean; more where the
        judge is asked.
    """
    self._target, self._stage, self._seed = target, stage, seed
    self._number, self._draws = number, draws
    self._forward = target.attacked
    # What needs no gradient asks the judge: climbing by another function it
    # would stay at that one's boundary, and by single draws at a lucky one.
    if not stage.needs_gradient:
      self._forward = target.judge
      self._draws = max(draws, JUDGE_DRAWS)
    # FAB looks where it has moved to, and has a value a rival, not an image.
    looks_itself = isinstance(stage.attack, Fab)
    self.looks = stage.stays and not looks_itself
    self.stays = stage.stays

  def empty(self, params: PyTree, items: Items) -> Slots:
    """Slots whose content means nothing."""
    like = self._enter(params, items, jnp.float32(0))  # of which the shapes
    return jax.tree.map(jnp.zeros_like, like)

  def advance(
    self,
    params: PyTree,
    slots: Slots,
    items: Items,
    enter: Bool[Array, 'batch'],
    active: Bool[Array, 'batch'],
    turn: Turn,
  ) -> tuple[Slots, dict[str, Array]]:
    """Fills slots and takes some steps with all of them.

    Args:
      params: the weights.
      slots: of the call before.
      items: images that may enter.
      enter: where an item takes the slot.
      active: where there is an image; elsewhere nothing happens.
      turn: how far to go.

    Returns:
      The slots, and what `report` says of them.
    """
    fill = lambda slots: self.fill(params, slots, items, enter, active, turn)
    slots = jax.lax.cond(turn.begins, fill, lambda slots: slots, slots)
    step = lambda i, slots: self.step(params, slots, active, turn, i)
    slots = jax.lax.fori_loop(0, self.count(turn), step, slots)
    if self.looks:
      last = lambda slots: self.last(params, slots, active, turn)
      slots = jax.lax.cond(turn.ends, last, lambda slots: slots, slots)
    if not self.stays:
      agree = lambda slots: self.agree(params, slots, active, turn)
      claims = (active & slots.state.broken).any()
      slots = jax.lax.cond(claims, agree, lambda slots: slots, slots)
    return slots, report(slots)

  def count(self, turn: Turn) -> ArrayLike:
    """Steps of a call; nobody needs the gradient of the very last one."""
    return turn.count - turn.ends if self.looks else turn.count

  def fill(self, params, slots, items, enter, active, turn) -> Slots:
    """Items take their slots; arguments as of `advance`."""
    target, key = self._drawn(params, turn)
    entered = self._entered(target, items, active, turn.eps, key)
    return _choose(enter, entered, slots)

  def step(self, params, slots, active, turn, i) -> Slots:
    """The step number `i` of a call; other arguments as of `advance`."""
    target, key = self._drawn(params, turn)
    loss = self._loss(target, slots.goal, active, jax.random.fold_in(key, i))
    state, attack = slots.state, self._stage.attack
    runs = active & (state.turn < attack.steps)
    if not self.stays:
      runs &= ~state.broken
    moved = attack.step(loss, state, jnp.asarray(turn.eps))
    return slots.replace(state=_choose(runs, moved, state))

  def last(self, params, slots, active, turn) -> Slots:
    """The end of images that stay; arguments as of `advance`."""
    target, key = self._drawn(params, turn)
    return self._look(target, slots, active, key)

  def agree(self, params, slots, active, turn) -> Slots:
    """A claim of the attack's counts if the judge agrees."""
    target, key = self._drawn(params, turn)
    state, attack = slots.state, self._stage.attack
    claimed = active & state.broken

    def denies(x_adv):
      found = predict(target, target.judge, x_adv, active, key, JUDGE_DRAWS)
      return claimed & ~self._broken(found[0], slots.goal)

    denied = denies(state.x_adv)
    if isinstance(attack, Fab):  # the nearest point may be too near

      def beyond():
        edge = where(denied, attack.edge(state, turn.eps), state.x_adv)
        return edge, denies(edge)

      x_adv, denied = jax.lax.cond(
        denied.any(), beyond, lambda: (state.x_adv, denied)
      )
      state = attack.forget(state.replace(x_adv=x_adv), denied)
    return slots.replace(state=state.replace(broken=state.broken & ~denied))

  def attempt(
    self, params: PyTree, batch: dict[str, Array], eps: ArrayLike
  ) -> tuple[Slots, dict[str, Array]]:
    """One run on a batch as one program, for those who count or time.

    It is what `advance` does in turns if no image leaves before its end.

    Args:
      params: the weights.
      batch: 'image', 'label', 'target', 'index' and 'mask', each as in `Items`;
        nothing happens where the mask is False.
      eps: radius, in units of pixels in [0, 1].

    Returns:
      As of `advance`.
    """
    names = ('image', 'label', 'target', 'index')
    first = jnp.zeros_like(batch['index'])
    items = Items(**{name: batch[name] for name in names}, attempt=first)
    stage, mask = self._stage, batch['mask']
    # Of constants, so that the compiler knows how often loops turn.
    turn = Turn(eps, stage.attack.steps, True, stage.stays, 0)
    slots = self.empty(params, items)
    return self.advance(params, slots, items, mask, mask, turn)

  def _drawn(self, params, turn) -> tuple[Target, Array]:
    """What is attacked, and the key of a call."""
    key = jax.random.fold_in(jax.random.key(self._seed), 2**20 + self._number)
    target = dataclasses.replace(self._target, params=params)
    return target, jax.random.fold_in(key, turn.tick)

  def _enter(self, params, items: Items, eps) -> Slots:
    """The images in their slots, before anything is asked."""
    stage, images = self._stage, as_floats(items.image)
    fold = jax.random.key(self._seed)
    # A stage that is alone draws by the example only.
    if self._number or not stage.stays:
      fold = jax.random.fold_in(fold, self._number)
    fold = jax.vmap(jax.random.fold_in, (None, 0))(fold, items.index)
    keys = jax.vmap(jax.random.fold_in)(fold, items.attempt)
    restart = items.attempt % stage.restarts
    state = stage.attack.start(images, keys, eps, restart)
    context, mask = (), items.index >= 0
    if self._target.context is not None:
      context = self._target.context(params, images, mask)
    return Slots(state, Goal(items.label, items.target, context))

  def _entered(self, target, items, active, eps, key) -> Slots:
    slots = self._enter(target.params, items, eps)
    if not self.looks:
      return slots
    # The clean image is the first candidate, so that no image comes out easier
    # than it went in.
    state = slots.state
    seen = self._look(
      target, slots.replace(state=state.replace(x=state.clean)), active, key
    )
    seen = seen.state.replace(x=state.x, turn=state.turn)
    return slots.replace(state=seen)

  def _look(self, target, slots, active, key) -> Slots:
    """Asks the loss about `state.x`, and keeps it if it is worse."""
    loss = self._loss(target, slots.goal, active, key)
    return slots.replace(state=record(slots.state, *loss(slots.state.x)))

  def _broken(self, logits, goal):
    """Wrong or, if that is what the stage wants, taken for the target."""
    top = classes(logits)
    if self._stage.until == 'target':
      return top == goal.target
    return ~is_right(top, goal.label)

  def _loss(self, target, goal, mask, key):
    """The loss that the attack raises, of images alone."""
    value = objective(self._stage)

    def once(x, key):
      logits, more = predict(target, self._forward, x, mask, key)
      return value(logits, more, goal).astype(x.dtype), logits

    def loss(x):
      if not target.random or self._draws == 1:
        values, logits = once(x, key)
        return values, self._broken(logits, goal)
      # Of a random model the mean: gradients of one draw lead nowhere.
      again = jax.checkpoint(lambda key: once(x, key))
      keys = jax.random.split(key, self._draws)
      values, logits = jax.lax.map(again, keys)
      mean = jax.nn.logsumexp(log_probabilities(logits), 0)
      return values.mean(0), self._broken(mean, goal)

    return loss


def objective(stage: Stage) -> Callable[[Array, PyTree, Goal], Array]:
  """What a stage raises: (logits, what else the model returned, goal)."""
  if callable(stage.loss):
    return stage.loss
  value = LOSSES[stage.loss]
  return lambda logits, more, goal: value(logits, goal.label, goal.target)


def report(slots: Slots) -> dict[str, Array]:
  """What the host has to know of each slot."""
  state = slots.state
  names = 'turn', 'led', 'broken', 'value'
  return {name: getattr(state, name) for name in names}


@flax.struct.dataclass
class Outbox:
  """Images that left their slots and wait to be judged, each in its row."""

  x_adv: Array
  clean: Array
  label: Array

  @classmethod
  def of(cls, slots: Slots) -> 'Outbox':
    """What the slots hold."""
    state = slots.state
    return cls(state.x_adv, state.clean, slots.goal.label)


def collect(
  outbox: Outbox, slots: Slots, leaves: Bool[Array, 'batch']
) -> Outbox:
  """Copies the images that leave to the same rows of the outbox."""
  return _choose(leaves, Outbox.of(slots), outbox)


def pick(slots: Slots, rows: Int[Array, 'fewer']) -> Slots:
  """The slots of some rows, in fewer slots."""
  return jax.tree.map(lambda x: x[rows], slots)


def _choose(condition, yes, no):
  return jax.tree.map(lambda a, b: where(condition, a, b), yes, no)
