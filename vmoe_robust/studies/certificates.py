"""`config.study.name = 'certificates'`: L2 certificates by smoothing.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized
Smoothing" (arXiv:1902.02818), algorithm CERTIFY. The model judged is not the
checkpoint's but the smoothed one: the class that wins under Gaussian noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from scipy import special

from vmoe_robust.config import batch_size
from vmoe_robust.data import Part, eval_batches
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate.batches import progress, rows_of
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import (
  batch_sharding,
  batch_shards,
  constrain_batch,
)
from vmoe_robust.models import Model
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import mean, rate
from vmoe_robust.report.table import percent, table
from vmoe_robust.report.verdicts import NO_CLASS, is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import as_floats

# In place of a class; it is never right.
ABSTAIN = NO_CLASS
_PASSES = 16  # of the model, in one call of the program

Counts = Int[Array, 'batch classes']


def run(job: Job) -> Findings:
  """Certifies each example.

  Raises:
    UserError: no image could be read.
  """
  return findings(*certificates(job), job.config)


def lower_bound(
  count: Int[np.ndarray, '*shape'], n: int, alpha: float
) -> Float[np.ndarray, '*shape']:
  """Of a probability, at confidence 1 - alpha, from `count` of `n` draws.

  One-sided Clopper-Pearson: exact, so never too high more often than alpha.
  """
  count = np.asarray(count)
  bound = special.betaincinv(np.maximum(count, 1), n - count + 1, alpha)
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
  radius = sigma * special.ndtri(np.where(is_sure, bound, 0.5))
  return np.where(is_sure, selected, ABSTAIN), radius


def counter(model: Model, config: ConfigDict, copies: int) -> Callable:
  """A jitted `(params, batch, counts, first, last) -> counts`.

  It adds the classes of the draws from `first` to before `last`, `copies` in
  one pass. A draw's noise follows the seed, the example and the draw's number.
  """
  settings = config.study.certificates
  sigma, every = settings.sigma, settings.every
  mesh = model.module.mesh

  def count(params, batch, counts, first, last):
    images = as_floats(batch['image'])
    seed = jax.random.key(config.seed)
    # The number in the split, so that `every` changes no draw.
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
      votes = jax.nn.one_hot(classes(logits), counts.shape[1], dtype=int)
      votes = votes.reshape(len(images), copies, -1)
      return counts + (votes * (draws < last)[None, :, None]).sum(1)

    passes = -(-(last - first) // copies)
    return jax.lax.fori_loop(0, passes, one_pass, counts)

  place = batch_sharding(mesh)
  return jax.jit(count, out_shardings=place)


def certificates(job: Job) -> tuple[Columns, set[int]]:
  """A row an example, and the examples skipped."""
  config, settings = job.config, job.config.study.certificates
  source = Part(job.source, np.arange(0, len(job.source), settings.every))
  images, copies = _shape(
    len(source),
    batch_size(config, 'study'),
    batch_shards(job.classifier.mesh),
  )
  count = counter(job.classifier.model, config, copies)
  total, draws = -(-len(source) // images), settings.n0 + settings.n

  def batches(first):
    return eval_batches(
      config.data,
      source,
      batch_size=images,
      sharding=batch_sharding(job.classifier.mesh),
      first=first,
    )

  with progress(total * draws, 'certificates', 'draw') as update:

    def find(number, batch):
      told = _telling(update, number * draws, images)
      votes = _vote(count, job, batch, copies, told)
      row = {name: batch[name] for name in ('mask', 'label', 'index')}
      row = fetch(row | votes)
      row['index'] = np.where(
        row['index'] >= 0, row['index'] * settings.every, -1
      )
      return row

    columns, skipped = rows_of(job, batches, find)
  return _certified(columns, settings), skipped


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


def _vote(count, job: Job, batch, copies, told) -> dict[str, Array]:
  """Counts of the selecting and of the estimating draws."""
  settings, params = job.config.study.certificates, job.classifier.params
  shape = (batch['mask'].shape[0], job.config.model.num_classes)
  zeros = np.zeros(shape, np.int32)
  found, running = {}, None
  bounds = 0, settings.n0, settings.n0 + settings.n
  parts = zip(('counts_n0', 'counts'), bounds[:-1], bounds[1:], strict=True)
  for name, first, end in parts:
    votes = jax.device_put(zeros, batch_sharding(job.classifier.mesh))
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


def _certified(columns: Columns, settings: ConfigDict) -> Columns:
  selected = columns['counts_n0'].argmax(1)
  count = np.take_along_axis(columns['counts'], selected[:, None], 1)[:, 0]
  prediction, radius = certify(
    selected, count, settings.n, settings.alpha, settings.sigma
  )
  return columns | {
    'selected': selected,
    'count': count,
    'prediction_after': prediction,
    'condition': np.full(len(radius), _condition(settings)),
    'radius': radius,
  }


def _condition(settings: ConfigDict) -> str:
  return f'sigma {settings.sigma:.6g}'


def findings(
  columns: Columns, skipped: set[int], config: ConfigDict
) -> Findings:
  """Certified accuracy at each radius, as in the paper's section 4.

  Args:
    columns: of `certificates`.
    skipped: indices of the examples that could not be read.
    config: the whole configuration.
  """
  settings = config.study.certificates
  right = is_right(columns['prediction_after'], columns['label'])
  rows = [
    {
      'condition': _condition(settings),
      'radius': radius,
      'certified_accuracy': rate(right & (columns['radius'] >= radius)),
    }
    for radius in settings.radii
  ]
  lost = int(
    len(right) * (settings.n0 + settings.n)
    - columns['counts'].sum()
    - columns['counts_n0'].sum()
  )
  largest = lower_bound(np.array(settings.n), settings.n, settings.alpha)
  largest = float(settings.sigma * special.ndtri(largest))
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'smoothed_accuracy': rate(right),
      'abstained': rate(columns['prediction_after'] == ABSTAIN),
      'mean_certified_radius': mean(columns['radius'] * right),
      'largest_radius_possible': largest,
      'not_finite': lost,
      'confidence': 1 - settings.alpha,
    },
    figures=[_figure(columns['radius'], right, settings, largest)],
    warnings=[f'{lost} draws are not finite: no votes'] if lost else [],
  )


def _figure(radius, right, settings: ConfigDict, largest: float) -> LinePlot:
  """Certified accuracy up to just above the largest radius there can be."""
  x = np.linspace(0, 1.05 * largest, 43)
  found = [rate(right & (radius >= one)) for one in x]
  line = Line.of(_condition(settings), x.tolist(), found)
  title = f'Certified accuracy, {len(right):,} examples, n = {settings.n:,}'
  return LinePlot(
    'certificates', title, 'L2 radius', 'certified accuracy', [line]
  )


def render(results: dict) -> str:
  """The table of certified accuracies, and what limits them."""
  settings, summary = results['asked']['settings'], results['summary']
  rows = []
  for row in results['rows']:
    found = row['certified_accuracy']
    low, high = found['interval']
    shown = f'{100 * low:.1f} to {100 * high:.1f}'
    rows.append([f'{row["radius"]:.6g}', percent(found['value']), shown])
  return '\n'.join(
    [
      table(['L2 radius', 'certified accuracy', '95% interval'], rows),
      '',
      f'smoothed by sigma {settings["sigma"]:.4g}: accuracy '
      f'{percent(summary["smoothed_accuracy"]["value"])}, abstained '
      f'{percent(summary["abstained"]["value"])}, mean certified radius '
      f'{summary["mean_certified_radius"]["value"]:.3f}',
      f'{settings["n0"]:,} + {settings["n"]:,} draws an image, alpha '
      f'{settings["alpha"]:g}; no radius can exceed '
      f'{summary["largest_radius_possible"]:.3f}',
    ]
  )
