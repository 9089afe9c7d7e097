"""`config.mode = 'certify'`: L2 certificates by randomised smoothing.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized
Smoothing" (arXiv:1902.02818), algorithm CERTIFY. The model judged is not the
checkpoint's but the smoothed one: the class that wins under Gaussian noise.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from scipy import stats

from vmoe_robust.config import batch_size
from vmoe_robust.data import Every, eval_batches
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate import judge
from vmoe_robust.evaluate.opened import Opened
from vmoe_robust.mesh import (
  batch_sharding,
  batch_shards,
  constrain_batch,
)
from vmoe_robust.models import Model
from vmoe_robust.report.table import table
from vmoe_robust.robustness import measure
from vmoe_robust.robustness.target import as_floats

ABSTAIN = -1
_PASSES = 16  # of the model, in one call of the program

Counts = Int[Array, 'batch classes']


def run(config: ConfigDict, workdir: str | os.PathLike):
  """Certifies `config.checkpoint`, writes the results, prints the table.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  judge.run(config, workdir, certificates, summarise, closing)


def lower_bound(
  count: Int[np.ndarray, '*shape'], n: int, alpha: float
) -> Float[np.ndarray, '*shape']:
  """Of a probability, at confidence 1 - alpha, from `count` of `n` draws.

  One-sided Clopper-Pearson: exact, so never too high more often than alpha.
  """
  count = np.asarray(count)
  bound = stats.beta.ppf(alpha, np.maximum(count, 1), n - count + 1)
  return np.where(count > 0, bound, 0.0)


def certify(
  selected: Int[np.ndarray, 'batch'],
  count: Int[np.ndarray, 'batch'],
  n: int,
  alpha: float,
  sigma: float,
) -> tuple[Int[np.ndarray, 'batch'], Float[np.ndarray, 'batch']]:
  """Class and L2 radius of each image, or `ABSTAIN` and 0.

  Args:
    selected: the class that earlier draws voted for.
    count: how many of `n` further draws voted for it.
    n: how many there were.
    alpha: probability of a certificate that is false.
    sigma: of the noise.
  """
  bound = lower_bound(count, n, alpha)
  is_sure = bound >= 0.5
  radius = sigma * stats.norm.ppf(np.where(is_sure, bound, 0.5))
  return np.where(is_sure, selected, ABSTAIN), radius


def counter(model: Model, config: ConfigDict, copies: int) -> Callable:
  """A jitted `(params, batch, counts, first, last) -> counts`.

  It adds the classes of the draws from `first` to before `last`, `copies` in
  one pass. A draw's noise follows the seed, the example and the draw's number.
  """
  sigma, every = config.certify.sigma, config.certify.every
  mesh = model.module.mesh

  def count(params, batch, counts, first, last):
    images = as_floats(batch['image'])
    seed = jax.random.key(config.seed)
    # The number in the split, so that config.certify.every changes no draw.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      seed, jnp.maximum(batch['index'], 0) * every
    )
    repeat = lambda x: jnp.repeat(x, copies, axis=0)
    mask, wide = repeat(batch['mask']), repeat(images)

    def one_pass(i, counts):
      draws = first + i * copies + jnp.arange(copies)
      noise = jax.vmap(
        lambda key: jax.vmap(
          lambda draw: jax.random.normal(
            jax.random.fold_in(key, draw), images.shape[1:]
          )
        )(draws)
      )(keys)
      noisy = constrain_batch(wide + sigma * noise.reshape(wide.shape), mesh)
      logits, _ = model.apply(params, noisy, experts='dropless', mask=mask)
      # Of a class that is not finite, -1, there is no vote.
      votes = jax.nn.one_hot(
        measure.classes(logits), counts.shape[1], dtype=int
      )
      votes = votes.reshape(len(images), copies, -1)
      return counts + (votes * (draws < last)[None, :, None]).sum(1)

    passes = -(-(last - first) // copies)
    return jax.lax.fori_loop(0, passes, one_pass, counts)

  place = batch_sharding(mesh)
  return jax.jit(count, out_shardings=place)


def certificates(here: Opened) -> tuple[judge.Columns, set[int]]:
  """A row an example, and the examples skipped."""
  config, settings = here.config, here.config.certify
  source = Every(here.source, settings.every)
  images, copies = _shape(
    len(source),
    batch_size(config, 'certify'),
    batch_shards(here.classifier.mesh),
  )
  count = counter(here.classifier.model, config, copies)
  total, draws = -(-len(source) // images), settings.n0 + settings.n

  def batches(first):
    return eval_batches(
      config.data,
      source,
      batch_size=images,
      sharding=batch_sharding(here.classifier.mesh),
      first=first,
    )

  with judge.progress(total * draws, 'certify', 'draw') as update:

    def find(number, batch):
      told = _telling(update, number * draws, images)
      votes = _vote(count, here, batch, copies, told)
      row = {name: batch[name] for name in ('mask', 'label', 'index')}
      row = fetch(row | votes)
      row['index'] = np.where(
        row['index'] >= 0, row['index'] * settings.every, -1
      )
      return row

    columns, corrupt = judge.rows_of(here, batches, find)
  return _certified(columns, settings), corrupt


def _telling(update, before: int, images: int) -> Callable[[int], None]:
  """Turns draws of this batch into draws and images in all."""
  shown = 0

  def told(draws):
    nonlocal shown
    update(before + draws, (draws - shown) * images)
    shown = draws

  return told


def _shape(examples: int, wanted: int, shards: int) -> tuple[int, int]:
  """Examples and copies of each that fill a batch of `wanted` images."""
  images = min(-(-examples // shards) * shards, wanted)
  return images, max(wanted // images, 1)


def _vote(count, here: Opened, batch, copies, told) -> dict[str, Array]:
  """Counts of the selecting and of the estimating draws."""
  settings, params = here.config.certify, here.classifier.params
  classes = here.config.model.num_classes
  zeros = np.zeros((batch['mask'].shape[0], classes), np.int32)
  found, running = {}, None
  bounds = 0, settings.n0, settings.n0 + settings.n
  for name, first, end in zip(
    ('counts_n0', 'counts'), bounds, bounds[1:], strict=False
  ):
    votes = jax.device_put(zeros, batch_sharding(here.classifier.mesh))
    for start in range(first, end, _PASSES * copies):
      stop = min(start + _PASSES * copies, end)
      votes = count(params, batch, votes, np.int32(start), np.int32(stop))
      if running is not None:  # waited for one call late, so that none waits
        running.block_until_ready()
        told(start)
      running = votes
    found[name] = votes
  running.block_until_ready()
  told(bounds[-1])
  return found


def _certified(columns: judge.Columns, settings: ConfigDict) -> judge.Columns:
  selected = columns['counts_n0'].argmax(1)
  count = np.take_along_axis(columns['counts'], selected[:, None], 1)[:, 0]
  prediction, radius = certify(
    selected, count, settings.n, settings.alpha, settings.sigma
  )
  return columns | {
    'selected': selected,
    'count': count,
    'prediction': prediction,
    'radius': radius,
  }


def summarise(columns: judge.Columns, config: ConfigDict) -> dict:
  """Certified accuracy at each radius, as in the paper's section 4."""
  settings = config.certify
  right = measure.is_right(columns['prediction'], columns['label'])
  at = lambda radius: float((right & (columns['radius'] >= radius)).mean())
  largest = lower_bound(np.array(settings.n), settings.n, settings.alpha)
  return {
    'examples': len(right),
    'smoothed_accuracy': float(right.mean()),
    'abstained': float((columns['prediction'] == ABSTAIN).mean()),
    'certified_accuracy': {f'{r:.6g}': at(r) for r in settings.radii},
    'mean_certified_radius': float((columns['radius'] * right).mean()),
    'largest_radius_possible': float(settings.sigma * stats.norm.ppf(largest)),
    'not_finite': int(
      len(right) * (settings.n0 + settings.n)
      - columns['counts'].sum()
      - columns['counts_n0'].sum()
    ),
    'confidence': 1 - settings.alpha,
  }


def closing(results: dict, workdir: str | os.PathLike) -> str:
  """Table and summary that end a run."""
  percent = lambda x: f'{100 * x:.1f}%'
  settings = results['config']['certify']
  rows = [
    [radius, percent(accuracy)]
    for radius, accuracy in results['certified_accuracy'].items()
  ]
  lines = [
    table(['L2 radius', 'certified accuracy'], rows),
    '',
    f'smoothed by sigma {settings["sigma"]:.4g}: accuracy '
    f'{percent(results["smoothed_accuracy"])}, abstained '
    f'{percent(results["abstained"])}, mean certified radius '
    f'{results["mean_certified_radius"]:.3f}',
    f'{settings["n0"]:,} + {settings["n"]:,} draws an image, alpha '
    f'{settings["alpha"]:g}; no radius can exceed '
    f'{results["largest_radius_possible"]:.3f}',
  ]
  if results['not_finite']:
    lines.append(f'{results["not_finite"]} draws are not finite: no votes')
  return '\n'.join([*lines, judge.footer(results, workdir)])
