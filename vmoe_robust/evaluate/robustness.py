"""Runs an attack over a split and measures what it did.

Two programs, each compiled once for a whole sweep: one finds x_adv, the other
is given x_adv as numbers and judges it, so that nothing the attack believes
about its own iterates is reported.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from vmoe_robust import attacks
from vmoe_robust.evaluate import routing
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Aux, Model, losses

Batch = dict[str, Array]
Images = Float[Array, 'batch height width channels']
_TOLERANCE = 1e-6


def programs(model: Model, config: ConfigDict) -> tuple[Callable, Callable]:
  """The two jitted programs, for any number of calls of `run`."""
  place = batch_sharding(model.module.mesh)
  attack = jax.jit(attack_program(model, config), out_shardings=place)
  return attack, jax.jit(score_program(model, config))


def attack_program(
  model: Model, config: ConfigDict
) -> Callable[[PyTree, Batch, Float[Array, '']], Images]:
  """`(params, batch, eps) -> x_adv` for `config.attack`, to be jitted."""
  attack, settings = attacks.build(config.attack), config.attack

  def program(params, batch, eps):
    images, wanted = _images(batch), _wanted(batch, config)
    seed = jax.random.key(config.seed)
    # Draws follow the example, not its place in a batch or on the mesh.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, batch['index'])
    apply = partial(
      model.apply, params, experts=settings.experts, mask=batch['mask']
    )
    aim = wanted
    if settings.target:
      logits, _ = apply(images)
      aim = _target(logits, wanted, settings.target, keys)

    def loss(x):
      logits, aux = apply(x)
      per_image = losses.classification(logits, aim, config.train.loss)
      if settings.target:
        per_image, broken = -per_image, losses.top_is_right(logits, aim)
      else:
        broken = ~losses.top_is_right(logits, wanted)
      per_image = settings.class_weight * per_image
      if settings.auxiliary_weight:
        per_image += settings.auxiliary_weight * auxiliary(aux, len(x))
      return per_image, broken

    return attack(loss, images, keys, eps)

  return program


def score_program(
  model: Model, config: ConfigDict
) -> Callable[[PyTree, Batch, Images], tuple[dict, dict]]:
  """`(params, batch, x_adv) -> (per example, expert loads)`, to be jitted."""

  def program(params, batch, x_adv):
    images, wanted = _images(batch), _wanted(batch, config)
    out = {
      'linf': attacks.distance(x_adv, images, 'linf'),
      'l2': attacks.distance(x_adv, images, 'l2'),
      'lowest_pixel': x_adv.min((1, 2, 3)),
      'highest_pixel': x_adv.max((1, 2, 3)),
    }
    loads, choices = {}, {}
    for when, x in (('before', images), ('after', x_adv)):
      logits, aux = model.apply(
        params, x, experts=config.attack.experts, mask=batch['mask']
      )
      out[f'prediction_{when}'] = logits.argmax(-1).astype(jnp.int32)
      out[f'loss_{when}'] = losses.classification(
        logits, wanted, config.train.loss
      )
      for block, record in aux.records.items():
        wish, kept = routing.selected(record, config.model, len(x))
        choices[block, when] = wish, kept
        out[f'dropped_{when}/{block}'] = routing.dropped(wish, kept)
        counted = kept & batch['mask'][:, None, None]
        loads[f'load_{when}/{block}'] = counted.sum((0, 1))
    for block in aux.records:
      (wish, kept), (wish_adv, kept_adv) = (
        choices[block, when] for when in ('before', 'after')
      )
      out[f'routing_change/{block}'] = routing.change(wish, wish_adv)
      out[f'routing_change_kept/{block}'] = routing.change(kept, kept_adv)
    return out, loads

  return program


def run(
  compiled: tuple[Callable, Callable],
  params: PyTree,
  batches,
  config: ConfigDict,
  on_batch: Callable[[int, int], None] = lambda done, images: None,
) -> tuple[dict[str, np.ndarray], dict[float, dict], float]:
  """Attacks every example at every eps.

  Args:
    compiled: of `programs`.
    params: weights of the model.
    batches: of `data.eval_batches`.
    config: the whole configuration; `config.attack.eps` is the sweep.
    on_batch: told after each batch and eps how many are done and how many
      images it had.

  Returns:
    Columns with a row an example and eps; of each eps the experts' loads by
    name; and the attacked images per second, compilation left out.
  """
  (attack, score), clock = compiled, _Clock()
  rows, loads = [], {eps: {} for eps in config.attack.eps}
  done = 0
  for batch in batches:
    mask, labels, index = _fetch(
      (batch['mask'], batch['label'], batch['index'])
    )
    for eps in config.attack.eps:
      clock.start()
      x_adv = attack(params, batch, jnp.float32(eps))
      out, load = score(params, batch, x_adv)
      if config.attack.save_images:
        out['x_adv'] = x_adv.reshape(len(mask), -1)
      out, load = _fetch((out, load))
      images = int(mask.sum())
      clock.stop(images)
      out |= {'index': index, 'label': labels}
      out['eps'] = np.full(len(mask), eps)
      rows.append({name: column[mask] for name, column in out.items()})
      for name, count in load.items():
        loads[eps][name] = loads[eps].get(name, 0) + count
      done += 1
      on_batch(done, images)
  columns = {
    name: np.concatenate([row[name] for row in rows]) for name in rows[0]
  }
  return columns, loads, clock.rate()


def violations(
  columns: dict[str, np.ndarray], attack: ConfigDict
) -> dict[str, int]:
  """How many x_adv are outside the ball (by over 1e-6), and outside [0, 1]."""
  too_far = columns[attack.norm] > columns['eps'] + _TOLERANCE
  outside = (columns['lowest_pixel'] < 0) | (columns['highest_pixel'] > 1)
  return {
    'outside_ball': int(too_far.sum()),
    'outside_range': int(outside.sum()),
  }


def auxiliary(aux: Aux, batch: int) -> Float[Array, '{batch}']:
  """The routers' losses of each image; a group's is shared by its images."""
  total = jnp.zeros(batch)
  for record in aux.records.values():
    loss = record.routing.auxiliary_loss
    total += jnp.repeat(loss, record.images)[:batch] / record.images
  return total


def _images(batch: Batch) -> Images:
  return batch['image'].astype(jnp.float32) / 255


def _wanted(batch: Batch, config: ConfigDict) -> Array:
  return losses.targets(batch['label'], config.model.num_classes)


def _target(logits, wanted, kind: str, keys) -> Array:
  """One-hot targets, never a wanted class."""
  if kind == 'random':
    draw = lambda key: jax.random.gumbel(key, logits.shape[1:])
    score = jax.vmap(draw)(keys)
  else:
    score = logits if kind == 'runner_up' else -logits
  score = jnp.where(wanted > 0, -jnp.inf, score)
  return jax.nn.one_hot(score.argmax(-1), logits.shape[-1])


def _fetch(tree: PyTree) -> PyTree:
  """The whole arrays, on every host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


class _Clock:
  """Images a second, without the first batch, which waits for the compiler."""

  def __init__(self):
    self._laps: list[tuple[float, int]] = []
    self._since = 0.0

  def start(self):
    self._since = time.perf_counter()

  def stop(self, images: int):
    self._laps.append((time.perf_counter() - self._since, images))

  def rate(self) -> float:
    laps = self._laps[1:] or self._laps
    seconds, images = map(sum, zip(*laps, strict=True))
    return images / seconds
