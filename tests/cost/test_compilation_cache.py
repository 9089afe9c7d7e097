"""Programs that are kept on disk, each in a process of its own."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.cost import compilation_cache

_CODE = """
import sys
import jax, jax.numpy as jnp
from vmoe_robust.cost import compilation_cache
hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name.endswith('/cache_hits')))
print(compilation_cache.use(sys.argv[1]))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3))[0, 0], sum(hits))
"""


def start(where, home, **environment):
  """What a program prints, and its warnings."""
  names = ('XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR')
  kept = {k: v for k, v in os.environ.items() if k not in names}
  done = subprocess.run(
    [sys.executable, '-c', _CODE, where],
    env=kept | {'HOME': str(home), 'XLA_FLAGS': ''} | environment,
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  folder, found = done.stdout.splitlines()
  return folder, int(found.split()[1]), done.stderr


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path):
  folder, hits, errors = start('user', tmp_path)
  assert folder.startswith(str(tmp_path / '.cache' / 'vmoe_robust')), folder
  assert hits == 0 and not errors
  kept = len(list(pathlib.Path(folder).iterdir()))
  again, hits, errors = start('user', tmp_path)
  assert again == folder and hits >= kept > 0 and not errors


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
  (tmp_path / 'file').touch()
  folder, hits, errors = start(str(tmp_path / 'file' / 'cache'), tmp_path)
  assert (folder, hits) == ('None', 0)
  assert 'config.compilation_cache' in errors and len(errors.splitlines()) == 1


@pytest.fixture
def settings():
  """What JAX was told comes back."""
  names = (
    'jax_enable_compilation_cache',
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_it_goes_where_it_is_told(tmp_path, monkeypatch, settings):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  monkeypatch.setenv('HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  ours = compilation_cache.use('user')
  assert ours.parent == tmp_path / 'xdg' / 'vmoe_robust' and ours.is_dir()
  assert compilation_cache.use('~/cache') == tmp_path / 'cache'
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'cache')
  assert jax.config.jax_enable_compilation_cache
  assert compilation_cache.use('user') == ours  # nobody else told it '~/cache'
  for name in ('a', 'b'):
    kept = compilation_cache.use(str(tmp_path / name))
    shift = ord(name)
    jax.jit(lambda x, shift=shift: x @ x + shift)(
      jnp.eye(5)
    ).block_until_ready()
    assert list(kept.iterdir()), name
  assert compilation_cache.use('') is None
  assert not jax.config.jax_enable_compilation_cache
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'told'))
  assert compilation_cache.use('user') == tmp_path / 'told'
  with pytest.raises(UserError, match='config.compilation_cache=.gs://'):
    compilation_cache.use('gs://bucket/cache')
