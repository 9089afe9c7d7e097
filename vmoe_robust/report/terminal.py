"""Text for people."""

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

import jax


def say(text: str) -> None:
  """Prints, on the first process alone."""
  if jax.process_index() == 0:
    put(sys.stdout, text + '\n')


def put(stream: TextIO | io.TextIOBase, text: str) -> None:
  """Writes text at once, or goes on without: no work is lost for a line.

  A full disk may have room for later lines. A pipe that nobody reads any more
  and a terminal that is gone get none again.
  """
  try:
    stream.write(text)
    stream.flush()
  except OSError as error:
    if error.errno in (errno.EPIPE, errno.EIO):
      _leave(stream)


def _leave(stream: TextIO | io.TextIOBase) -> None:
  """What is written goes nowhere, also when Python ends."""
  with contextlib.suppress(OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
