import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError

NAME = 'layer/kernel'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('a run #1 %20')
  config = config_lib.default()
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  for step in (1, 2):
    kernel = jnp.arange(12.0).reshape(4, 3) + step
    params = {'layer': {'kernel': kernel, 'half': jnp.bfloat16(step)}}
    trees = {'params': params, 'rest': {'step': jnp.int32(step)}}
    if step == 2:
      trees['ema'] = jax.tree.map(lambda leaf: -leaf, params)
    checkpoints.save(step, trees, {})
  checkpoints.close()
  checkpoint.save_config(workdir, config)
  return workdir


def test_a_run(workdir):
  weights = checkpoint.open_weights(workdir)
  assert isinstance(weights, checkpoint.Weights)
  assert weights.where == str(workdir)
  assert weights.config == config_lib.default()
  assert weights.shapes == {
    'layer/half': jax.ShapeDtypeStruct((), jnp.bfloat16),
    NAME: jax.ShapeDtypeStruct((4, 3), jnp.float32),
  }
  averaged = -np.arange(12.0).reshape(4, 3) - 2
  np.testing.assert_array_equal(weights.read(NAME), averaged)
  part = (slice(1, 3), slice(0, 2))
  np.testing.assert_array_equal(weights.read(NAME, part), averaged[part])
  half = weights.read('layer/half')
  assert half == -2 and half.dtype == jnp.bfloat16
  weights.close()


def test_a_step_of_a_run(workdir):
  for path, step in [(workdir, 1), (workdir / 'checkpoints' / '1', None)]:
    weights = checkpoint.open_weights(path, step=step)
    np.testing.assert_array_equal(
      weights.read(NAME), np.arange(12.0).reshape(4, 3) + 1
    )
  with pytest.raises(UserError, match=r'clf=.*steps \[1, 2\]'):
    checkpoint.open_weights(workdir, step=3, field='clf')


def test_damage_after_opening_is_said(workdir):
  weights = checkpoint.open_weights(workdir, step=1)
  folder = workdir / 'checkpoints' / '1' / 'params'
  before = {path: path.read_bytes() for path in folder.glob('**/d/*')}
  for path, content in before.items():
    path.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match=f'{NAME} cannot.*1/params: .*verify'):
    weights.read(NAME)
  for path, content in before.items():
    path.write_bytes(content)
  folder.rename(folder.with_name('gone'))
  with pytest.raises(UserError, match=f'{NAME} cannot.*1/params: .*verify'):
    weights.read(NAME)
  folder.with_name('gone').rename(folder)
  weights.read(NAME)


def test_each_device_reads_its_part(workdir):
  weights = checkpoint.open_weights(workdir)
  places = NamedSharding(mesh_lib.create((4, 1, 2)), PartitionSpec('data'))
  read = functools.partial(weights.read, NAME)
  found = jax.make_array_from_callback((4, 3), places, read)
  np.testing.assert_array_equal(found, weights.read(NAME))


def test_nothing_there(tmp_path):
  for path in (tmp_path / 'absent', tmp_path / 'file'):
    with pytest.raises(UserError, match='clf=.*no directory.*give the workdir'):
      checkpoint.open_weights(path, field='clf')
    (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='clf=.*holds no checkpoint'):
    checkpoint.open_weights(tmp_path, field='clf')
  with pytest.raises(UserError, match="clf='' names nothing"):
    checkpoint.open_weights('', field='clf')
