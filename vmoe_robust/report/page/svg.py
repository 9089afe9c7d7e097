"""Parts of a drawing: axes, markers and the frame."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from vmoe_robust.report.page.scales import Scale

WIDTH = 420  # of a drawing, in its own units; it fits its column
LINE = 12  # of text, high
# Told apart without colours: one a line, again after seven.
_MARKERS = (
  'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0',
  'M-3.6 -3.6h7.2v7.2h-7.2z',
  'M0 -5L5 0L0 5L-5 0z',
  'M0 -4.6L4.6 3.6H-4.6z',
  'M0 4.6L4.6 -3.6H-4.6z',
  'M-1.6 -4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z',
  'M-4.4 -4.4L4.4 -4.4L0 0L4.4 4.4H-4.4L0 0z',
)
COLOURS = 6  # classes c0 to c5 of the style sheet


def drawing(height: float, words: str, parts: Sequence[Markup]) -> Markup:
  """Parts in one frame, with words for those who do not see it."""
  return Markup(
    '<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {:.0f}">{}'
    '</svg>'
  ).format(words, WIDTH, height, Markup('').join(parts))


def x_axis(x: Scale, top: float, bottom: float, name: str) -> Markup:
  """Ticks with their numbers, and the name of the axis below."""
  parts = [
    Markup(
      '<path class="grid" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/><text '
      'class="middle" x="{at:.1f}" y="{below:.1f}">{text}</text>'
    ).format(at=x(v), top=top, bottom=bottom, below=bottom + 14, text=text)
    for v, text in x.ticks
  ]
  parts.append(
    Markup('<text class="middle" x="{:.1f}" y="{:.1f}">{}</text>').format(
      (x.begin + x.end) / 2, bottom + 29, name
    )
  )
  return Markup('').join(parts)


def y_axis(y: Scale, left: float, right: float) -> Markup:
  """Ticks with their numbers to the left."""
  return Markup('').join(
    Markup(
      '<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/><text '
      'class="end" x="{text_at:.1f}" y="{text_y:.1f}">{text}</text>'
    ).format(
      left=left,
      right=right,
      at=y(v),
      text_at=left - 5,
      text_y=y(v) + 4,
      text=text,
    )  # fmt: skip
    for v, text in y.ticks
  )


def marker(number: int, x: float, y: float, tip: str = '') -> Markup:
  """The marker of a line, with what it tells when pointed at."""
  more = Markup(' data-tip="{}"').format(tip) if tip else ''
  return Markup(
    '<path class="c{} marker" transform="translate({:.1f} {:.1f})" d="{}"{}/>'
  ).format(number % COLOURS, x, y, _MARKERS[number % len(_MARKERS)], more)


def is_known(value: float | None) -> bool:
  """Whether a number is one that can be drawn."""
  return value is not None and math.isfinite(value)
