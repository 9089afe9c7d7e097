"""A progress line with speed and time left."""

import collections
import io
import os
import sys
import time

import jax

from vmoe_robust.report.terminal import put

# Seconds: how far back speed looks, and how often a line may change.
_WINDOW = 20.0
_REDRAW = 0.1
_PLAIN_EVERY = 5.0

_CLEAR = '\r\x1b[K'


class Progress:
  """One line that keeps changing on a terminal, a line now and then elsewhere.

  Speed is that of the last seconds. The time before the first update, when
  programs compile, does not count.
  """

  def __init__(
    self,
    total: int,
    what: str,
    unit: str = 'step',
    done: int = 0,
    stream: io.TextIOBase | None = None,
  ):
    """Starts at `done` of `total` units; shows nothing before an update.

    Args:
      total: units of work, 0 if there is nothing to do.
      what: leads the line, for example 'train'.
      unit: singular name of what is counted.
      done: units that an earlier run has done.
      stream: where to write; None means the standard error stream.
    """
    self._total, self._what, self._unit = total, what, unit
    self._done, self._images, self._text = done, 0, ''
    self._stream = sys.stderr if stream is None else stream
    self._live = self._stream.isatty()
    self._marks = collections.deque()
    self._shown_at, self._shown_done = -float('inf'), -1  # nothing yet
    self._is_shown, self._percent = True, 0

  def update(
    self,
    done: int,
    images: int = 0,
    text: str = '',
    total: int | None = None,
  ) -> None:
    """Sets the units done, and shows them if it is time to.

    Elsewhere than on a terminal it is, at the earliest, when `done` is another.

    Args:
      done: units done in all.
      images: handled since the last update.
      text: ends the line, for example 'loss 0.12'.
      total: units of work, if they have changed; the percentage never falls.
    """
    self._total = self._total if total is None else total
    now = time.monotonic()
    self._done, self._text, self._is_shown = done, text, False
    self._images += images
    self._marks.append((now, done, self._images))
    while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
      self._marks.popleft()
    every = _REDRAW if self._live else _PLAIN_EVERY
    if now - self._shown_at >= every and self._has_news():
      self._show(now)

  def close(self) -> None:
    """Clears the live line; elsewhere, shows how far it came."""
    if self._live:
      put(self._stream, _CLEAR)
    elif not self._is_shown and self._has_news():
      self._show(time.monotonic())

  def _has_news(self):
    return self._live or self._done != self._shown_done

  def _show(self, now):
    line = self._line()
    if self._live:
      put(self._stream, _CLEAR + line[: _columns(self._stream) - 1])
    else:
      put(self._stream, line + '\n')
    self._shown_at, self._shown_done = now, self._done
    self._is_shown = True

  def _line(self):
    parts = [f'{self._what} {self._unit} {self._done}/{self._total}']
    if self._total > 0:
      percent = min(100 * self._done // self._total, 100)
      self._percent = max(self._percent, percent)
      parts[0] += f' ({self._percent}%)'
    (then, done, images), (now, _, _) = self._marks[0], self._marks[-1]
    seconds = now - then
    if seconds > 0 and self._images > images:
      parts.append(f'{_rate((self._images - images) / seconds)} images/s')
    if seconds > 0 and self._done > done:
      left = max(self._total - self._done, 0) * seconds / (self._done - done)
      parts.append(f'{duration(left)} left')
    return ', '.join([*parts, self._text] if self._text else parts)


class Stages:
  """A line for each stage of some work, one after another.

  On the first process of several alone.
  """

  def __init__(self, examples: int):
    """`examples` is how many there are, of which some still stand."""
    self._examples = examples
    self._name: str | None = None
    self._line: Progress | None = None

  def update(self, name: str, done: int, total: int, standing: int) -> None:
    """Shows how far a stage is.

    Args:
      name: of the stage.
      done: steps (gradients or queries) that all attempts of the stage have
        made; never less than before.
      total: steps that they make in all; less than before when images fall,
        whose attempts need no more.
      standing: examples that stand.
    """
    if jax.process_index():
      return
    if name != self._name:
      self.close()
      self._name, self._line = name, Progress(total, name)
    text = f'{standing:,} of {self._examples:,} stand'
    self._line.update(min(done, total), text=text, total=total)

  def close(self) -> None:
    """Ends the line."""
    if self._line:
      self._line.close()
      self._name = self._line = None


def duration(seconds: float) -> str:
  """Seconds in words as short as '42 s', '3:05 min' or '2:10 h'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60}:{whole % 60:02} min'
  return f'{whole // 3600}:{whole % 3600 // 60:02} h'


def _rate(value):
  return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def _columns(stream):
  try:
    return os.get_terminal_size(stream.fileno()).columns or 80
  except (OSError, ValueError):
    return 80
