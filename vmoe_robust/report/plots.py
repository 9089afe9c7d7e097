"""Pictures of what attacks found."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from vmoe_robust.files import replacing

# How much a perturbation is amplified at most.
_MOST = 50


def robustness(path: str | os.PathLike, results: Mapping):
  """Accuracy against eps, a line for each attack, with its 95% interval.

  Args:
    path: of the PNG.
    results: what is in `results.json`.
  """
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
  _save(figure, path)


def examples(
  path: str | os.PathLike,
  images: Float[np.ndarray, 'images height width channels'],
  x_adv: Float[np.ndarray, 'images height width channels'],
  titles: Sequence[tuple[str, str]],
):
  """Images, what became of them, and the difference, amplified.

  Args:
    path: of the PNG.
    images: pixels in [0, 1].
    x_adv: the same, attacked.
    titles: the predictions before and after.
  """
  count = len(images)
  figure, axes = _figure(1.6 * count + 0.6, 5.2, 3, count)
  axes = np.asarray(axes).reshape(3, count)
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
  _save(figure, path)


def _figure(width, height, rows=1, columns=1):
  # Imported late: it takes a second that few programs need to spend.
  from matplotlib.figure import Figure

  figure = Figure((width, height), layout='constrained')
  return figure, figure.subplots(rows, columns)


def _save(figure, path):
  with replacing(path) as draft:
    figure.savefig(draft, format='png', dpi=150)


def _percent(values):
  return 100 * np.asarray(values)
