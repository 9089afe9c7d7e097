"""Runs an attack over a split and measures what it did.

One program, compiled once for a whole sweep: it finds x_adv, then judges it as
mere numbers, so that nothing the attack believes about its own iterates is
reported.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from vmoe_robust import attacks
from vmoe_robust.config import UserError, eps_name
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate import routing
from vmoe_robust.evaluate.fall import Fall
from vmoe_robust.evaluate.kept import Kept
from vmoe_robust.evaluate.sweep import Shown
from vmoe_robust.evaluate.victim import as_floats
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.models import Aux, Model, losses

Batch = dict[str, Array]
Images = Float[Array, 'batch height width channels']
_LOAD = 'load of '  # of a column that has no row an example


class Program:
  """Attacks and judges a batch, compiled for the first one."""

  def __init__(self, model: Model, config: ConfigDict):
    """Compiles nothing yet."""
    self.config = config
    attack, score = attack_program(model, config), score_program(model, config)
    place = batch_sharding(model.module.mesh)

    def program(params, batch, eps):
      x_adv, target = attack(params, batch, eps)
      # Whatever the attack knows of x_adv, the judge is not to use.
      x_adv = jax.lax.optimization_barrier(x_adv)
      return x_adv, target, *score(params, batch, x_adv, eps)

    places = (place, place, None, None)
    self._program = jax.jit(program, out_shardings=places)
    self._compiled = None

  def __call__(self, params: PyTree, batch: Batch) -> jax.stages.Compiled:
    """Compiles for batches like this one, the first time."""
    if self._compiled is None:
      lowered = self._program.lower(params, batch, jnp.float32(0))
      self._compiled = lowered.compile()
    return self._compiled


@dataclasses.dataclass(frozen=True)
class Attacked:
  """What `run` found."""

  columns: dict[str, np.ndarray]  # a row an example and eps
  loads: dict[float, dict[str, np.ndarray]]  # of each eps the experts' tokens
  corrupt: list[int]  # examples that were skipped
  images_per_second: float
  # Of ensembles: what each attack did, and what makes numbers hard to believe.
  falls: dict[float, Fall] = dataclasses.field(default_factory=dict)
  warnings: list[str] = dataclasses.field(default_factory=list)
  shown: Shown | None = None  # some examples, to look at


def attack_program(
  model: Model, config: ConfigDict
) -> Callable[[PyTree, Batch, Float[Array, '']], tuple[Images, Array]]:
  """`(params, batch, eps) -> (x_adv, target)` for `config.attack`.

  The target is a class, -1 if the attack has none.
  """
  attack, settings = attacks.build(config.attack), config.attack

  def program(params, batch, eps):
    images, wanted = as_floats(batch['image']), _wanted(batch, config)
    seed = jax.random.key(config.seed)
    # Draws follow the example, not its place in a batch or on the mesh.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, batch['index'])
    apply = partial(
      model.apply, params, experts=settings.experts, mask=batch['mask']
    )
    aim, target = wanted, jnp.full(len(images), -1)
    if settings.target:
      logits, _ = apply(images)
      target = _target(logits, wanted, settings.target, keys)
      aim = jax.nn.one_hot(target, logits.shape[-1])

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

    return attack(loss, images, keys, eps), target

  return program


def score_program(
  model: Model, config: ConfigDict
) -> Callable[[PyTree, Batch, Images, Float[Array, '']], tuple[dict, dict]]:
  """`(params, batch, x_adv, eps) -> (per example, expert loads)`."""

  def program(params, batch, x_adv, eps):
    images, wanted = as_floats(batch['image']), _wanted(batch, config)
    bounds = attacks.check(x_adv, images, eps, config.attack.norm)
    out = {
      'in_ball': bounds[0],
      'in_range': bounds[1],
      'linf': attacks.distance(x_adv, images, 'linf'),
      'l2': attacks.distance(x_adv, images, 'l2'),
      'l1': attacks.distance(x_adv, images, 'l1'),
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
  program: Program,
  params: PyTree,
  batches: Iterable[Batch],
  on_batch: Callable[[int, int], None] = lambda done, images: None,
  kept: Kept | None = None,
) -> Attacked:
  """Attacks every example at every eps of `config.attack`.

  Args:
    program: of the model.
    params: its weights.
    batches: of `data.eval_batches`.
    on_batch: told after each batch and eps how many are done and how many
      images it had.
    kept: what an attack that was cut short has found.

  Raises:
    RuntimeError: a sound attack left its ball or [0, 1], so that its numbers
      mean nothing.
    UserError: no example could be read.
  """
  settings = program.config.attack
  rows, loads, corrupt = [], {eps: {} for eps in settings.eps}, []
  spent, done = [0, 0.0], 0  # images and seconds
  kept = kept or Kept(None, {})
  for number, batch in enumerate(batches):
    mask, labels, index = fetch((batch['mask'], batch['label'], batch['index']))
    corrupt += index[~mask & (index >= 0)].tolist()
    for eps in settings.eps:
      found = kept.get(number, eps_name(eps))
      if found is None:
        attack = program(params, batch)
        start = time.perf_counter()
        x_adv, target, out, load = attack(params, batch, jnp.float32(eps))
        out['target'] = target
        if settings.save_images:
          out['x_adv'] = x_adv.reshape(len(mask), -1)
        found = fetch(out | {_LOAD + name: x for name, x in load.items()})
        spent[0] += len(mask)
        spent[1] += time.perf_counter() - start
        kept.put(found, number, eps_name(eps))
      out = {n: x for n, x in found.items() if not n.startswith(_LOAD)}
      out |= {'index': index, 'label': labels, 'eps': np.full(len(mask), eps)}
      rows.append({name: column[mask] for name, column in out.items()})
      if settings.name != 'paper':  # which by design leaves [0, 1]
        _require_bounds(rows[-1])
      for name in [name for name in found if name.startswith(_LOAD)]:
        block = name.removeprefix(_LOAD)
        loads[eps][block] = loads[eps].get(block, 0) + found[name]
      done += 1
      on_batch(done, int(mask.sum()))
  columns = {
    name: np.concatenate([row[name] for row in rows]) for name in rows[0]
  }
  if not len(columns['index']):
    raise UserError(
      f'all {len(corrupt)} images of config.data.split='
      f'{program.config.data.split!r} are corrupt; check config.data.dir'
    )
  speed = spent[0] / max(spent[1], 1e-9)
  return Attacked(columns, loads, corrupt, speed)


def _require_bounds(row: dict[str, np.ndarray]):
  for name in ('in_ball', 'in_range'):
    if not row[name].all():
      where = row['index'][~row[name]].tolist()
      raise RuntimeError(
        f'x_adv of examples {where[:5]} is not {name} at eps={row["eps"][0]}'
      )


def auxiliary(aux: Aux, batch: int) -> Float[Array, '{batch}']:
  """The routers' losses of each image: that of its group.

  Their mean over the batch is `Aux.loss`, as in the paper's attack.
  """
  total = jnp.zeros(batch)
  for record in aux.records.values():
    loss = record.routing.auxiliary_loss
    total += jnp.repeat(loss, record.images)[:batch]
  return total


def _wanted(batch: Batch, config: ConfigDict) -> Array:
  return losses.targets(batch['label'], config.model.num_classes)


def _target(logits, wanted, kind: str, keys) -> Array:
  """A class for each image, never a wanted one."""
  if kind == 'random':
    draw = lambda key: jax.random.gumbel(key, logits.shape[1:])
    score = jax.vmap(draw)(keys)
  else:
    score = logits if kind == 'runner_up' else -logits
  score = jnp.where(wanted > 0, -jnp.inf, score)
  return score.argmax(-1)
