"""What a model says of examples, as they are and as they were attacked."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import warn
from vmoe_robust.evaluate.victim import (
  JUDGE_DRAWS,
  Score,
  Victim,
  as_floats,
  is_broken,
  predict,
)
from vmoe_robust.mesh import batch_sharding, batch_shards, replicated
from vmoe_robust.mesh.batch import BatchRows


@runtime_checkable
class Rows(Protocol):
  """Examples by number: 'image', 'label' and 'mask'; see `data.rows.Rows`."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Their fields, stacked; -1 is padding."""
    ...

  def ahead(self, indices: Iterable[int]):
    """Says which will be asked for."""
    ...


@dataclasses.dataclass(frozen=True)
class Clean:
  """What the model says of the examples as they are."""

  label: np.ndarray  # int32
  mask: np.ndarray  # False: corrupt
  right: np.ndarray
  ranked: np.ndarray  # classes from the likeliest on, as many as are needed


class Evaluator:
  """Programs for one model and one shape, compiled once."""

  def __init__(
    self, victim: Victim, score: Score, seed: int, batch_size: int, ranks: int
  ):
    """Compiles nothing yet.

    Args:
      victim: what is judged.
      score: judges x_adv; `simple_score` for a plain function.
      seed: of all that is drawn.
      batch_size: of all devices together.
      ranks: classes that `Clean.ranked` has.

    Raises:
      UserError: the devices cannot share a batch evenly.
    """
    shards = batch_shards(victim.mesh)
    if batch_size % shards:
      raise UserError(
        f'batch_size={batch_size} is not divisible by the {shards} devices '
        f'that share it; use {batch_size // shards * shards or shards}'
      )
    self.batch_rows = BatchRows(batch_sharding(victim.mesh), batch_size)
    self._victim, self._seed, self._ranks = victim, seed, ranks
    whole = replicated(victim.mesh)
    self._checks = warn.Checks(victim)
    self._all = jax.jit(lambda x: x, out_shardings=whole)
    self._score = jax.jit(score, out_shardings=(whole, whole))
    self._look = jax.jit(self._look_at, out_shardings=whole)

  def clean(self, params: PyTree, rows: Rows) -> Clean:
    """Judges every example as it is."""
    found = []
    for indices in self._batches(len(rows)):
      batch = self._put(rows(indices[self.batch_rows.mine]), indices)
      found.append(jax.device_get(self._look(params, batch)))
      found[-1] = {k: v[indices >= 0] for k, v in found[-1].items()}
    return Clean(
      **{k: np.concatenate([one[k] for one in found]) for k in found[0]}
    )

  def judge(
    self, params: PyTree, rows: Rows, x_adv: np.ndarray, eps: float
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Judges every x_adv as mere numbers; columns by example, and sums."""
    columns, sums = [], {}
    for indices in self._batches(len(rows)):
      mine = indices[self.batch_rows.mine]
      batch = self._put(rows(mine), indices)
      images = self.batch_rows.put(x_adv[np.maximum(mine, 0)])
      out, load = jax.device_get(
        self._score(params, batch, images, np.float32(eps))
      )
      out |= {
        'index': indices,
        'label': jax.device_get(self._all(batch['label'])),
      }
      keep = (indices >= 0) & jax.device_get(self._all(batch['mask']))
      columns.append({k: v[keep] for k, v in out.items()})
      for name, count in load.items():
        sums[name] = sums.get(name, 0) + count
    return {
      k: np.concatenate([one[k] for one in columns]) for k in columns[0]
    }, sums

  def warnings(self, params: PyTree, rows: Rows) -> list[str]:
    """What makes the numbers hard to believe, before anything is attacked.

    Raises:
      UserError: images change each other's predictions.
    """
    indices = next(self._batches(len(rows)))
    batch = self._put(rows(indices[self.batch_rows.mine]), indices)
    images = as_floats(batch['image'])
    return self._checks(params, images, batch['label'], batch['mask'])

  def _batches(self, count: int):
    size = self.batch_rows.batch_size
    for begin in range(0, count, size):
      indices = np.arange(begin, begin + size, dtype=np.int32)
      yield np.where(indices < count, indices, -1)

  def _put(self, mine: dict, indices: np.ndarray) -> dict[str, jax.Array]:
    out = {
      k: self.batch_rows.put(np.asarray(v))
      for k, v in mine.items()
      if k != 'index'
    }
    return out | {'index': self.batch_rows.spread(indices)}

  def _look_at(self, params, batch):
    victim = dataclasses.replace(self._victim, params=params)
    logits = predict(
      victim,
      victim.forward,
      as_floats(batch['image']),
      batch['mask'],
      jax.random.key(self._seed),
      JUDGE_DRAWS,
    )
    label = batch['label'].astype(jnp.int32)
    return {
      'label': label,
      'mask': batch['mask'],
      'right': ~is_broken(logits, label) & batch['mask'],
      'ranked': jax.lax.top_k(logits, self._ranks)[1],
    }
