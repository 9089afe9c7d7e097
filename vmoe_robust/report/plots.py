"""Pictures of what attacks found.

A picture that cannot be drawn or written is a warning: it never ends a run,
whose numbers are in its other files.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from vmoe_robust.files import replacing

# How much a perturbation is amplified at most.
_MOST = 50


def robustness(path: str | os.PathLike, results: Mapping) -> None:
  """Accuracy against eps, a line for each attack, with its 95% interval.

  Args:
    path: of the PNG.
    results: what is in `results.json`.
  """
  draw(path, lambda: _robustness(results))


def _robustness(results):
  figure, axes = _figure(6.4, 4.2)
  ((name, sweep),) = results['attacks'].items()
  scale, unit = (255, ' (1/255)') if name.endswith('linf') else (1, '')
  found = sorted(sweep.values(), key=lambda one: one['eps'])
  radii = np.array([0.0] + [scale * one['eps'] for one in found])
  clean = results['clean_accuracy']
  stages = list(found[0].get('robust_after', {}))[:-1]
  for stage in stages:
    line = [clean] + [one['robust_after'][stage] for one in found]
    axes.plot(radii, _percent(line), '--', marker='.', label=f'after {stage}')
  line = [clean] + [one['robust_accuracy'] for one in found]
  bounds = [results['clean_accuracy_interval']]
  bounds += [one['robust_accuracy_interval'] for one in found]
  low, high = np.array(bounds).T
  axes.plot(radii, _percent(line), 'k', marker='o', label=name)
  axes.fill_between(
    radii,
    _percent(low),
    _percent(high),
    color='k',
    alpha=0.15,
    linewidth=0,
    label='95% interval',
  )
  axes.set_xlabel(f'eps{unit}')
  axes.set_ylabel('accuracy (%)')
  axes.set_ylim(0, 100)
  axes.set_title(f'{results["split"]}, {results["examples"]:,} examples')
  axes.legend()
  return figure


def examples(
  path: str | os.PathLike,
  images: Float[np.ndarray, 'images height width channels'],
  x_adv: Float[np.ndarray, 'images height width channels'],
  titles: Sequence[tuple[str, str]],
) -> None:
  """Images, what became of them, and the difference, amplified.

  Args:
    path: of the PNG.
    images: pixels in [0, 1].
    x_adv: the same, attacked.
    titles: the predictions before and after.
  """
  draw(path, lambda: _examples(images, x_adv, titles))


def _examples(images, x_adv, titles):
  count = len(images)
  figure, axes = _figure(1.6 * count + 0.6, 5.2, 3, count)
  axes = np.asarray(axes).reshape(3, count)
  # A pixel that is not a number is shown as black.
  images, x_adv = np.nan_to_num(images), np.nan_to_num(x_adv)
  largest = max(float(np.abs(x_adv - images).max()), 1e-6)
  times = min(int(0.5 / largest), _MOST) or 1
  for column, (image, adversarial, names) in enumerate(
    zip(images, x_adv, titles, strict=True)
  ):
    difference = 0.5 + times * (adversarial - image)
    shown = (image, adversarial, np.clip(difference, 0, 1))
    for row, picture in enumerate(shown):
      here = axes[row, column]
      here.imshow(picture.squeeze(), cmap='gray', vmin=0, vmax=1)
      here.set_xticks([])
      here.set_yticks([])
      if row < 2:
        here.set_title(names[row], fontsize=9)
  for row, label in enumerate(('image', 'attacked', f'difference x {times}')):
    axes[row, 0].set_ylabel(label)
  return figure


def draw(path: str | os.PathLike, make: Callable[[], Any]) -> bool:
  """Draws and writes a picture; whatever goes wrong is one warning.

  Text is shown as it is: `$` and `_` in names are no mathematics.

  Args:
    path: of the PNG.
    make: draws and returns a matplotlib `Figure`.

  Returns:
    Whether the picture was written.
  """
  try:
    import matplotlib  # late, as in `_figure`

    with warnings.catch_warnings(), matplotlib.rc_context():
      warnings.filterwarnings('ignore', 'Glyph .* missing from')
      matplotlib.rcParams['text.parse_math'] = False
      figure = make()
      with replacing(path) as draft:
        figure.savefig(draft, format='png', dpi=150)
  except Exception as error:  # of whatever kind
    text = '%s was not drawn (%s: %s); all else goes on'
    logging.warning(text, path, type(error).__name__, error)
    return False
  return True


def _figure(width, height, rows=1, columns=1):
  # Imported late: it takes a second that few programs need to spend.
  from matplotlib.figure import Figure

  figure = Figure((width, height), layout='constrained')
  return figure, figure.subplots(rows, columns)


def _percent(values):
  return 100 * np.asarray(values)
