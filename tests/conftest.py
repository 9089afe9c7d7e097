"""Set before anything imports jax: eight fake devices and checked shapes."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # Most of the tests' time is compiling programs that run once.
    '--xla_backend_optimization_level=0',
  )
)
if 'PYTEST_XDIST_WORKER' not in os.environ:  # a worker has its parent's
  os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='vmoe_robust-')
  atexit.register(shutil.rmtree, os.environ['XDG_CACHE_HOME'], True)

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
