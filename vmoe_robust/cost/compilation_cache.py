"""Compiled programs are kept on disk, so that a second start is quick."""

import os
import pathlib
import platform
import tempfile
import warnings
import zlib

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from vmoe_robust.files import local_path

# Folders that earlier calls chose, and not the user.
_chosen: set[str] = set()


def use(where: str) -> pathlib.Path | None:
  """Lets JAX keep compiled programs in a folder, and take them from there.

  JAX finds a program by what it computes, the versions of JAX and XLA, the
  devices and the flags. A folder that cannot be used costs a warning. What JAX
  was told already (`JAX_COMPILATION_CACHE_DIR`) goes before 'user'.

  Args:
    where: 'user' for a folder of this package in $XDG_CACHE_HOME or ~/.cache,
      '' to keep nothing, or a folder.

  Returns:
    The folder, None if nothing is kept.
  """
  jax.config.update('jax_enable_compilation_cache', bool(where))
  if not where:
    return None
  told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if where == 'user' and told and told not in _chosen:
    return pathlib.Path(told)
  folder = _folder(where)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    if not folder.is_dir():
      text = 'compiled programs are not kept: %s (%s); set '
      text += "config.compilation_cache to another folder, or to ''"
      logging.warning(text, folder, error.strerror)
      jax.config.update('jax_enable_compilation_cache', False)
      return None
  # One that is read-only or full still gives what it has; JAX would warn at
  # every program that it cannot write.
  warnings.filterwarnings('ignore', 'Error writing persistent compilation')
  if told != str(folder):
    compilation_cache.reset_cache()  # JAX keeps the first folder open
  _chosen.add(str(folder))
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return folder


def _folder(where: str) -> pathlib.Path:
  if where != 'user':
    return local_path(where, 'config.compilation_cache').absolute()
  return _ours() / f'{platform.machine()}-{_processor():08x}'


def _ours() -> pathlib.Path:
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return local_path(base, 'XDG_CACHE_HOME').absolute() / 'vmoe_robust'


def _processor() -> int:
  """By which processors are told apart: machines may share a home folder.

  XLA's programs for the CPU use the instructions of the one they are made on.
  """
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    text = platform.processor()
  lines = [x for x in text.splitlines() if x.startswith(('flags', 'Features'))]
  return zlib.crc32('\n'.join(lines[:1] or [text]).encode())
