"""`config.study.name = 'theory'`: when sparse models can be more robust.

Four small problems whose answers are known, or nearly; docs/theory.md derives
them. It needs no checkpoint: it draws its own data and fits its own models.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.studies.theory import cells, learned, misrouting, show
from vmoe_robust.studies.theory.show import render as render

# Of each of the problems' training data, but for those in cells.
_TRAINING = 4096
# Errors are measured again, by another program, which rounds otherwise.
_ROOM = 1.01
# Numbers of a point; a condition that has not one of them has NaN.
_NUMBERS = ('gradient', 'expert_term', 'gate_term', 'squared_error')

Part = tuple[str, Columns]  # a condition, and columns of its points


def run(job: Job) -> Findings:
  """All four problems, `config.study.theory.draws` times each.

  An example is a point; no checkpoint is read, so that there are no passes.
  """
  settings, parts = job.config.study.theory, []
  for draw in range(settings.draws):
    rng = np.random.default_rng([job.config.seed, draw])
    found = [
      *_in_cells(rng, settings),
      *_learned(rng, settings),
      *_in_blocks(rng, settings),
    ]
    parts += [_filled(*part, draw, settings.points) for part in found]
  columns = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  return findings(columns, settings)


def _filled(
  condition: str, columns: Columns, draw: int, points: int
) -> Columns:
  """The columns that all conditions have."""
  nothing = np.full(points, np.nan)
  return {
    'index': draw * points + np.arange(points),
    'draw': np.full(points, draw),
    'condition': np.full(points, condition),
    'label': np.asarray(columns['label'], int),
    'prediction_after': np.asarray(columns['prediction_after'], int),
  } | {name: np.asarray(columns.get(name, nothing), float) for name in _NUMBERS}


def _in_cells(rng, settings: ConfigDict) -> list[Part]:
  """Random labels, fitted by experts of n / E points; E = 1 is dense."""
  n, out = settings.points, []
  x, y = cells.draw(rng, n, settings.dimension)
  across = np.linalg.qr(rng.standard_normal((settings.dimension, n)))[0].T
  small, signs = cells.draw(rng, n, settings.mlp_dimension)
  key = jax.random.key(rng.integers(2**31))
  for experts in (1, *settings.experts):
    for name, points in (('linear', x), ('orthogonal', across)):
      w = _experts(points, y, experts)
      value = (np.repeat(w, n // experts, 0) * points).sum(1)
      norm = np.repeat(np.linalg.norm(w, axis=1), n // experts)
      out.append(_labelled(f'{name}, E {experts}', y, value, norm))
    split = lambda a, experts=experts: a.reshape(experts, -1, *a.shape[1:])
    slope, value = _mlp_gradients(
      key, jnp.asarray(split(small)), jnp.asarray(split(signs)),
      settings.mlp_width,
    )  # fmt: skip
    value, slope = np.ravel(value), np.ravel(slope)
    out.append(_labelled(f'mlp, E {experts}', signs, value, slope))
  return out


_mlp_gradients = jax.jit(cells.mlp_gradients, static_argnums=3)


def _experts(x, y, experts: int) -> np.ndarray:
  parts = zip(np.split(x, experts), np.split(y, experts), strict=True)
  return np.stack([cells.min_norm(*part) for part in parts])


def _labelled(condition, y, value, gradient) -> Part:
  return condition, {
    'label': y > 0,
    'prediction_after': value > 0,
    'gradient': gradient,
    'squared_error': (value - y) ** 2,
  }


def _learned(rng, settings: ConfigDict) -> list[Part]:
  """Router and experts learned together, for teachers that disagree more."""
  out, key = [], jax.random.key(rng.integers(2**31))
  for disagreement in settings.disagreements:
    cells, functions = learned.teacher(rng, disagreement)
    x, y, _ = learned.points(rng, cells, functions, _TRAINING // 2)
    weights = learned.fit(key, jnp.asarray(x), jnp.asarray(y))
    x, y, cell = learned.points(rng, cells, functions, settings.points)
    found = learned.norms(*weights, jnp.asarray(x))
    columns = {
      'label': cell,
      'prediction_after': np.asarray(found['expert']),
      'squared_error': (np.asarray(found['output']) - y) ** 2,
    }
    for name in ('gradient', 'expert_term', 'gate_term'):
      columns[name] = np.asarray(found[name])
    out.append((f'learned, disagreement {disagreement:g}', columns))
  return out


def _in_blocks(rng, settings: ConfigDict) -> list[Part]:
  """Noisy inputs in blocks: dense, and experts that are misrouted."""
  out, noise = [], settings.blocks_noise
  for experts in settings.experts:
    w = misrouting.functions(rng, experts, settings.blocks_dimension)
    x, y, cell = misrouting.draw(rng, w, noise, _TRAINING)
    dense, own = misrouting.fit(x, y, cell)
    x, y, cell = misrouting.draw(rng, w, noise, settings.points)
    energy = misrouting.by_energy(x)
    taken = {
      f'misrouted {share:g}': misrouting.misrouted(rng, cell, experts, share)
      for share in settings.misrouted
    } | {'routed by energy': energy}
    found = {name: misrouting.routed(own, x, e) for name, e in taken.items()}
    # The dense predictor takes no decision; its cells are the right ones.
    taken['dense'], found['dense'] = cell, (x * dense).sum((1, 2))
    for name, value in found.items():
      out.append(
        (
          f'blocks, E {experts}, {name}',
          {
            'label': cell,
            'prediction_after': taken[name],
            'squared_error': (value - y) ** 2,
          },
        )
      )
  return out


def findings(columns: Columns, settings: ConfigDict) -> Findings:
  """The numbers of each condition, over draws.

  Args:
    columns: of all conditions.
    settings: `config.study.theory`.
  """
  rows = [
    *show.in_cells(columns, settings),
    *show.learned(columns, settings),
    *show.in_blocks(columns, settings),
  ]
  return Findings(
    columns=columns,
    skipped=[],
    rows=rows,
    summary={
      'expected_dense_norm': cells.expected_norm(
        settings.points, settings.dimension
      ),
      'misrouted_at_the_reversal': {
        f'E {experts}': misrouting.reversal(experts, settings.blocks_noise)
        for experts in settings.experts
      },
      'caveats': list(show.CAVEATS),
    },
    figures=show.figures(rows, settings),
    warnings=_unfitted(columns, settings),
  )


def _unfitted(columns: Columns, settings: ConfigDict) -> list[str]:
  """A warning if labels are not fitted: slopes are then smaller than of a fit.

  Linear experts fit exactly; MLPs end at a mean squared error in each cell, or
  after a number of steps.
  """
  out = []
  for experts in (1, *settings.experts):
    errors = {
      name: columns['squared_error'][
        columns['condition'] == f'{name}, E {experts}'
      ].reshape(settings.draws, experts, -1)
      for name in ('linear', 'orthogonal', 'mlp')
    }
    if max(errors['linear'].max(), errors['orthogonal'].max()) >= 1:
      out.append(f'linear, E {experts}: a label is not fitted')
    ends = errors['mlp'].mean(-1)
    if count := int((ends > _ROOM * cells.FITTED).sum()):
      out.append(
        f'mlp, E {experts}: {count} of {ends.size} fits ended at a mean '
        f'squared error above {cells.FITTED:g}, {ends.max():.2g} at most, and '
        'their slopes are too small to compare; set a larger '
        'config.study.theory.mlp_width'
      )
  return out
