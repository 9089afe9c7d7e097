"""Keeps a save that fails to one line.

Of a full disk Orbax, asyncio and TensorStore print a traceback for every array,
thousands of lines. What went wrong is in the warning of the writer.
"""

import logging
import os
import sys

import orbax.checkpoint as ocp

_ORBAX = os.path.dirname(ocp.__file__) + os.sep


class Hush:
  """From now on, until `close`, others do not print what the writer says."""

  def __init__(self):
    self._loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
    for logger in self._loggers:
      logger.addFilter(_is_news)
    self._hook = sys.unraisablehook
    sys.unraisablehook = self._unless_closed

  def close(self) -> None:
    """Lets them print again."""
    for logger in self._loggers:
      logger.removeFilter(_is_news)
    sys.unraisablehook = self._hook

  def _unless_closed(self, raised):
    """Leaves out that TensorStore finished what nobody waits for any more."""
    if str(raised.exc_value) != 'Event loop is closed':
      self._hook(raised)


def _is_news(record: logging.LogRecord) -> bool:
  return record.name != 'asyncio' and not record.pathname.startswith(_ORBAX)
