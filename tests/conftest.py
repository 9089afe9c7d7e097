"""Set before anything imports jax: eight fake devices and checked shapes."""

import atexit
import gc
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

from tests.environment import xla_flags

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  (os.environ.get('XLA_FLAGS', ''), xla_flags(devices=8))
)
if 'PYTEST_XDIST_WORKER' not in os.environ:  # a worker has its parent's
  os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='vmoe_robust-')
  atexit.register(shutil.rmtree, os.environ['XDG_CACHE_HOME'], True)
# Workers, the processes that tests start and the next run do not compile again
# what one of them compiled. An entry that another process is writing, or that
# a killed one left half written, fails its checksum and is compiled again,
# with a warning that pyproject.toml lets pass.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).parents[1] / '.jax_cache'),
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

_MOST_MAPS = 10_000  # of memory, with which tests go on as they are

# As in any Python, an int may stand where a float is expected.
install_import_hook(
  'vmoe_robust',
  'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))',
)


@pytest.fixture(scope='session')
def reference():
  from tests.autoattack_reference import Reference

  return Reference()


def pytest_collection_finish():
  # Tracing makes millions of objects. Looking through all of them for garbage
  # each time some hundreds are new costs a tenth of the tests' time.
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
  """Frees compiled programs at the end of a file, if there are many.

  A process that keeps too many has no memory map left (vm.max_map_count, 65,530
  on Linux), and aborts.
  """
  ended = nextitem is None or nextitem.path != item.path
  if ended and sys.platform == 'linux':
    with open('/proc/self/maps') as file:
      count = sum(1 for _ in file)
    if count > _MOST_MAPS:
      jax.clear_caches()
      gc.collect()


def pytest_collection_modifyitems(items):
  # The longest tests first: else one worker ends with them, alone.
  items.sort(key=lambda item: item.path.name != 'test_processes.py')
