"""Slots of a batch, each with an image that entered when there was room.

A program advances all of them by a few steps; whoever is broken or at its end
leaves, and another image takes the slot. So every batch is full, of one shape
and compiled once, however unevenly images fall (continuous batching).
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vmoe_robust.attacks import LOSSES, Stage, State
from vmoe_robust.attacks.interface import where
from vmoe_robust.evaluate.victim import (
  Victim,
  as_floats,
  is_broken,
  predict,
)


@flax.struct.dataclass
class Items:
  """Images that may take a slot."""

  image: Array  # uint8, or floats in [0, 1]
  label: Int[Array, 'batch']
  target: Int[Array, 'batch']  # a class; means nothing without targets
  index: Int[Array, 'batch']  # the example's number
  attempt: Int[Array, 'batch']  # which run on this image


@flax.struct.dataclass
class Slots:
  """Images under attack."""

  state: State
  label: Int[Array, 'batch']
  target: Int[Array, 'batch']


Advance = Callable[..., tuple[Slots, dict[str, Array]]]


def begin(stage: Stage, seed: int, number: int) -> Callable[..., Slots]:
  """`(items, eps) -> Slots`, from the start of each item's run."""

  def start(items: Items, eps: Float[Array, '']) -> Slots:
    base = jax.random.fold_in(jax.random.key(seed), number)
    fold = jax.vmap(jax.random.fold_in, (None, 0))(base, items.index)
    keys = jax.vmap(jax.random.fold_in)(fold, items.attempt)
    restart = items.attempt % stage.restarts
    state = stage.attack.start(as_floats(items.image), keys, eps, restart)
    return Slots(state, items.label, items.target)

  return start


def advance(
  victim: Victim, stage: Stage, seed: int, number: int, steps: int, draws: int
) -> Advance:
  """A program that fills slots and takes some steps with all of them.

  Args:
    victim: what is attacked.
    stage: the attack.
    seed: of all that is drawn.
    number: of the stage, so that stages draw unlike each other.
    steps: to take.
    draws: of a random model, over which its loss is a mean.

  Returns:
    `(params, slots, items, enter, active, eps, tick) -> (slots, report)`:
    where `enter` is true an item takes the slot; where `active` is false
    nothing happens; `tick` counts calls. The report has of each slot its
    'turn' and whether it is 'broken', as `victim.forward` judges.
  """
  start = begin(stage, seed, number)

  def program(
    params: PyTree,
    slots: Slots,
    items: Items,
    enter: Bool[Array, 'batch'],
    active: Bool[Array, 'batch'],
    eps: Float[Array, ''],
    tick: Int[Array, ''],
  ) -> tuple[Slots, dict[str, Array]]:
    subject = dataclasses.replace(victim, params=params)
    slots = _choose(enter, start(items, eps), slots)
    key = jax.random.fold_in(jax.random.key(seed), 2**20 + number)
    key = jax.random.fold_in(key, tick)

    def take(i, slots):
      loss = _loss(
        subject, stage, slots, active, jax.random.fold_in(key, i), draws
      )
      state = slots.state
      runs = active & ~state.broken & (state.turn < stage.attack.steps)
      moved = stage.attack.step(loss, state, eps)
      return slots.replace(state=_choose(runs, moved, state))

    slots = jax.lax.fori_loop(0, steps, take, slots)
    state = slots.state
    claimed = active & state.broken
    judge = lambda x: is_broken(
      predict(subject, subject.forward, x, active, key, draws), slots.label
    )
    # A claim of the attack's counts if the judge agrees.
    agreed = jax.lax.cond(claimed.any(), judge, lambda _: claimed, state.x_adv)
    denied = claimed & ~agreed
    state = state.replace(
      broken=state.broken & ~denied,
      value=jnp.where(denied, -jnp.inf, state.value),
    )
    report = {'turn': state.turn, 'broken': state.broken}
    return slots.replace(state=state), report

  return program


def _loss(victim, stage, slots, mask, key, draws):
  value = LOSSES[stage.loss]

  def once(x, key):
    logits = predict(victim, victim.attacked, x, mask, key, 1)
    return value(logits, slots.label, slots.target), logits

  def loss(x):
    if not victim.random or draws == 1:
      values, logits = once(x, key)
      return values, is_broken(logits, slots.label)
    # Of a random model the mean: gradients of one draw lead nowhere.
    again = jax.checkpoint(lambda key: once(x, key))
    values, logits = jax.lax.map(again, jax.random.split(key, draws))
    mean = jax.nn.softmax(logits).mean(0)
    return values.mean(0), is_broken(mean, slots.label)

  return loss


def _choose(condition, yes, no):
  pick = lambda a, b: where(condition, a, b)
  return jax.tree.map(pick, yes, no)
