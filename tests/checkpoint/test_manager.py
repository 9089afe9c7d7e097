import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from vmoe_robust import checkpoint as checkpoint_lib
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError


def settings(**values):
  save = config_lib.default().save
  save.update(values)
  return save


def trees(value, rows=8):
  params = {'layer': {'kernel': jnp.full((rows, 4), value)}}
  return {'params': params, 'rest': {'step': jnp.int32(value)}}


def abstract(sharding, rows=8):
  like = trees(0.0, rows)
  return checkpoint_lib.abstract(like, jax.tree.map(lambda x: sharding, like))


def saved(workdir, steps=(1, 2), **values):
  checkpoints = checkpoint_lib.Checkpoints(workdir, settings(**values))
  for step in steps:
    checkpoints.save(step, trees(float(step)), {'data': {'consumed': step}})
  checkpoints.close()
  checkpoint_lib.save_config(workdir, config_lib.default())


@pytest.fixture
def whole():
  mesh = mesh_lib.create((8, 1, 1))
  return mesh_lib.replicated(mesh)


def test_restores_onto_another_sharding(tmp_path):
  one = mesh_lib.create((8, 1, 1))
  value = jax.device_put(
    np.arange(32.0).reshape(8, 4), mesh_lib.batch_sharding(one)
  )
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, settings())
  checkpoints.save(3, {'params': {'kernel': value}}, {'data': None})
  checkpoints.close()
  two = mesh_lib.create((1, 4, 2))
  place = mesh_lib.batch_sharding(two)
  like = {'params': {'kernel': value}}
  wanted = checkpoint_lib.abstract(like, {'params': {'kernel': place}})
  found, extra = checkpoint_lib.Checkpoints(tmp_path).restore(3, wanted)
  np.testing.assert_array_equal(found['params']['kernel'], value)
  assert found['params']['kernel'].sharding == place
  assert extra == {'data': None}


def test_any_mesh_reads_what_any_other_wrote(tmp_path):
  """Every axis, on 1, 2, 4 and 8 devices; weights alone; another type."""
  shapes = [(1, 1, 1), (2, 1, 1), (1, 2, 2), (8, 1, 1), (2, 2, 2)]
  kernel = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  places = []
  for shape in shapes:
    devices = jax.devices()[: np.prod(shape)]
    axes = jax.sharding.PartitionSpec(('data', 'expert'), 'model')
    mesh = mesh_lib.create(shape, devices)
    places.append(jax.sharding.NamedSharding(mesh, axes))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, settings(keep=9))
  for step, place in enumerate(places):
    value = jax.device_put(kernel, place)
    rest = {'moments': value, 'step': jnp.int32(step)}
    trees = {'params': {'kernel': value}, 'rest': rest}
    checkpoints.save(step, trees, {'data': step})
  checkpoints.close()
  for step in range(len(places)):
    (tmp_path / 'checkpoints' / str(step) / 'rest').rename(tmp_path / f'{step}')
    for place in places:
      half = jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=place)
      full = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=place)
      for wanted in (half, full):
        params = {'kernel': wanted}
        trees, extra = checkpoints.restore(step, {'params': params})
        found = trees['params']['kernel']
        assert found.sharding == place and found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, kernel.astype(wanted.dtype))
        assert trees.keys() == {'params'} and extra == {'data': step}


def test_keeps_the_newest_and_every_kth(tmp_path):
  saved(tmp_path, steps=range(1, 8), keep=2, keep_every=3)
  assert checkpoint_lib.Checkpoints(tmp_path).steps() == [3, 6, 7]


def test_another_model_is_refused(tmp_path, whole):
  saved(tmp_path)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path)
  with pytest.raises(UserError, match=r'another model: params/layer/kernel'):
    checkpoints.restore(2, abstract(whole, rows=16))
  with pytest.raises(UserError, match="no 'ema'"):
    checkpoints.restore(2, {'ema': abstract(whole)['params']})


def flip_a_bit(directory):
  files = [p for p in directory.glob('params/**/*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  return largest


def test_a_flipped_bit_is_noticed_and_the_step_before_is_taken(tmp_path):
  saved(tmp_path)
  bad = flip_a_bit(tmp_path / 'checkpoints' / '2')
  checkpoints = checkpoint_lib.Checkpoints(tmp_path)
  assert checkpoints.damage(1) == ''
  name = bad.relative_to(tmp_path / 'checkpoints' / '2').as_posix()
  assert checkpoints.damage(2) == f'{name} has changed'
  assert checkpoints.newest_whole() == 1
  assert checkpoint_lib.locate(tmp_path) == (str(tmp_path), 1)
  ways = r'one of the steps \[1\], or move \S*checkpoints/2 away and start its'
  told = f'damaged: {name} has changed; name {ways}'
  with pytest.raises(UserError, match=told):
    checkpoint_lib.locate(tmp_path / 'checkpoints' / '2')


def test_what_is_damaged_is_set_aside_and_made_again(tmp_path):
  saved(tmp_path)
  flip_a_bit(tmp_path / 'checkpoints' / '2')
  strict = checkpoint_lib.Checkpoints(tmp_path, settings(on_damage='error'))
  with pytest.raises(UserError, match=r'steps \[2\].*from step 1 by'):
    strict.resume()
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, settings())
  assert checkpoints.resume() == 1
  assert checkpoints.steps() == [1]
  checkpoints.save(2, trees(5.0), {'data': None})
  checkpoints.close()
  assert len(list(tmp_path.glob('damaged-2-*'))) == 1
  again = checkpoint_lib.open_weights(tmp_path)
  assert again.step == 2
  np.testing.assert_array_equal(
    again.read('layer/kernel'), np.full((8, 4), 5.0)
  )


def test_locate(tmp_path):
  saved(tmp_path / 'run')
  run = str(tmp_path / 'run')
  assert checkpoint_lib.locate(run) == (run, 2)
  assert checkpoint_lib.locate(f'{run}/checkpoints/1') == (run, 1)
  (tmp_path / 'empty').mkdir()
  for bad, message in (
    (tmp_path / 'nowhere', 'does not exist'),
    (tmp_path / 'empty', 'holds no checkpoint'),
    (f'{run}/checkpoints/9', r'steps \[1, 2\]'),
  ):
    with pytest.raises(UserError, match=f'config.checkpoint=.*{message}'):
      checkpoint_lib.locate(bad)


def test_all_processes_take_the_best_that_the_first_one_sees(
  tmp_path, monkeypatch
):
  """Which a run beside may have replaced when another one looks."""
  config = config_lib.default()
  config.save.best = 'eval_loss'
  saved(tmp_path)
  checkpoint_lib.save_config(tmp_path, config)
  seen = []
  broadcast = lambda halves: seen.append(halves) or np.int32([0, 3])
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', broadcast)
  monkeypatch.setattr(multihost_utils, 'process_allgather', lambda row: [row])
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match="best' is damaged"):
    checkpoint_lib.locate(tmp_path / 'checkpoints' / 'best')
  assert [(int(high) << 31) + int(low) for high, low in seen] == [-1]


def test_a_run_that_never_saved_has_no_checkpoint(tmp_path):
  checkpoint_lib.Checkpoints(tmp_path, settings()).close()
  checkpoint_lib.save_config(tmp_path, config_lib.default())
  with pytest.raises(UserError, match='no finished checkpoint'):
    checkpoint_lib.locate(tmp_path)


def test_config_survives(tmp_path):
  config = config_lib.default()
  config.model.moe_blocks = (1, 3)
  checkpoint_lib.save_config(tmp_path, config)
  checkpoint_lib.save_config(tmp_path, config)  # over the old one
  found = checkpoint_lib.read_config(tmp_path)
  assert not config_lib.differences(config, found)
  assert checkpoint_lib.read_config(tmp_path / 'nowhere') is None
