"""What all pictures of matplotlib have in common."""

import os
import pathlib
import warnings
from typing import Any

from vmoe_robust.files import replacing


def figure_of(
  width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Any, Any]:
  """A figure of so many inches, and its axes."""
  # Imported late: it takes a second that few programs need to spend.
  from matplotlib.figure import Figure

  figure = Figure((width, height), layout='constrained')
  return figure, figure.subplots(rows, columns)


def save(figure, path: str | os.PathLike) -> None:
  """Writes a figure as PNG, and as SVG beside it."""
  path = pathlib.Path(path)
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing from')  # a box is shown
    # Placed once, which is a quarter of what a picture takes: by the size that
    # text has in pixels, which is a little more than in SVG.
    with replacing(path) as draft:
      figure.savefig(draft, format='png', dpi=150)
    figure.set_layout_engine('none')
    with replacing(path.with_suffix('.svg')) as draft:
      figure.savefig(draft, format='svg')


def plain(text: str) -> str:
  """Text in which a dollar sign begins no formula."""
  return text.replace('$', r'\$')
