"""One run a folder."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

import jax

from vmoe_robust.config import UserError


@contextlib.contextmanager
def locked(
  directory: str | os.PathLike, field: str = '--workdir'
) -> Iterator[None]:
  """Keeps other programs that ask for the same folder out.

  A program that is killed leaves nothing behind. The first process speaks for
  all of a run.

  Raises:
    UserError: another program is at work there.
  """
  if jax.process_index():
    yield
    return
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  with (path / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f'{field}={directory} is in use by another run; wait for its end, or '
        'choose another'
      ) from error
    yield
