"""A few images, what became of them, and which of their tokens changed."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vmoe_robust.files import replacing
from vmoe_robust.report.canvas import figure_of, plain, save
from vmoe_robust.report.tokens import TokenExperts, marks, short

# How much a perturbation is amplified at most.
_MOST = 50
_MOST_EXAMPLES = 8  # of a picture; the data have all


@dataclasses.dataclass(frozen=True)
class ExamplePictures:
  """Images, what became of them, and the difference, amplified."""

  name: str
  title: str
  images: Float[np.ndarray, 'images height width channels']  # in [0, 1]
  x_adv: Float[np.ndarray, 'images height width channels']
  before: Sequence[str]  # predicted classes
  after: Sequence[str]
  index: Sequence[int] = ()  # numbers of the examples in the records
  condition: str = ''  # of the records of x_adv
  experts: TokenExperts | None = None  # None: not known, or a dense model

  @property
  def data_name(self) -> str:
    """Of the file that has images and classes."""
    return f'{self.name}.npz'

  def write_data(self, path: str | os.PathLike) -> None:
    """Writes images, classes and experts as NumPy arrays."""
    arrays: dict[str, Any] = dict(
      images=self.images,
      x_adv=self.x_adv,
      before=np.array(self.before, str),
      after=np.array(self.after, str),
      index=np.array(self.index, int),
      condition=np.array(self.condition),
    )
    if self.experts is not None:
      arrays |= dict(
        blocks=np.array(self.experts.blocks, str),
        experts_before=self.experts.before,
        experts_after=self.experts.after,
        class_token=np.array(self.experts.class_token),
      )
    with replacing(path) as draft, draft.open('wb') as file:
      np.savez(file, **arrays)

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture as PNG, and as SVG beside it.

    Below the difference there is x_adv once more for each sparse block, with
    the patches hatched that changed their experts there.
    """
    count = min(len(self.images), _MOST_EXAMPLES)
    blocks = self.experts.blocks if self.experts is not None else ()
    rows = 3 + len(blocks)
    figure, axes = figure_of(1.6 * count + 0.6, 1.7 * rows + 0.1, rows, count)
    axes = np.asarray(axes).reshape(rows, count)
    # A pixel that is not a number is shown as black.
    images = np.nan_to_num(self.images[:count])
    attacked = np.nan_to_num(self.x_adv[:count])
    largest = max(float(np.abs(attacked - images).max()), 1e-6)
    times = min(int(0.5 / largest), _MOST) or 1
    for column, (image, x_adv) in enumerate(zip(images, attacked, strict=True)):
      difference = np.clip(0.5 + times * (x_adv - image), 0, 1)
      names = [self.before[column], self.after[column], '']
      names += [self.experts.count(column, b) for b in range(len(blocks))]
      pictures = [image, x_adv, difference, *(x_adv for _ in blocks)]
      for row, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        here = axes[row, column]
        here.imshow(picture.squeeze(), cmap='gray', vmin=0, vmax=1)
        here.set_xticks([])
        here.set_yticks([])
        here.set_title(plain(name), fontsize=9 if row < 3 else 7)
      for block in range(len(blocks)):
        marked = self.experts.patches(column, block)
        _mark(axes[3 + block, column], marked, image.shape[0])
    labels = ['image', 'attacked', f'difference x {times}']
    labels += [f'changed in {short(block)}' for block in blocks]
    for row, label in enumerate(labels):
      axes[row, 0].set_ylabel(label, fontsize=10 if row < 3 else 8)
    save(figure, path)


def _mark(axis, marked: np.ndarray, pixels: int):
  """Frames and hatches patches, in white with a black edge."""
  step = pixels / len(marked)
  ends = [(*line, (np.nan, np.nan)) for line in marks(marked)]
  x, y = step * np.array(ends).reshape(-1, 2).T - 0.5
  for colour, width in (('black', 2.4), ('white', 1)):
    axis.plot(x, y, color=colour, linewidth=width)
  axis.set_xlim(-0.5, pixels - 0.5)
  axis.set_ylim(pixels - 0.5, -0.5)
