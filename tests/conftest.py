"""Set before anything imports jax: eight fake devices and checked shapes."""

import atexit
import gc
import os
import pathlib
import shutil
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

from jaxtyping import install_import_hook  # noqa: E402

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
  # each time some hundreds are new costs a tenth of the tests' time. Not much
  # more rarely: compiled programs are part of such garbage, and a process that
  # keeps too many is out of memory maps (vm.max_map_count) and aborts.
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items):
  # The longest tests first: else one worker ends with them, alone.
  items.sort(key=lambda item: item.path.name != 'test_processes.py')
