import functools
import hashlib
import importlib
import pathlib
import sys

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from jax.sharding import NamedSharding, PartitionSpec

from tests.checkpoint import official_writer
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config import UserError
from vmoe_robust.models import build

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'vmoe_small.npz'
# Which file the authors' code put each array in, or each expert, when it wrote
# these weights from four devices; and what it wrote.
GOLDEN_FILES = (
  '012012012200001122000000000120112121021111100221111110022221'
  '10022222222120120202012000001122000011'
)
GOLDEN_CHECKSUMS = {
  'params.data-00000-of-00003': '5ac5c361c1e761ac',
  'params.data-00001-of-00003': 'f2a363109ad07ebb',
  'params.data-00002-of-00003': '4d4a82e43de2a4f6',
  'params.index': '5b385ede75156357',
}
KERNEL = 'Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel'


def weights_of(prefix, arrays, shards=None, **how):
  shards = dict.fromkeys(arrays, 0) | (shards or {})
  official_writer.write(prefix, arrays, shards, **how)
  return open_weights(prefix)


def normal(*shape, dtype=np.float32):
  return np.random.default_rng(0).normal(size=shape).astype(dtype)


def split(array, counts, shards):
  """Chunks dealt to the files in turn."""
  chunks = official_writer.split(array.shape, counts)
  return {chunk: i % shards for i, chunk in enumerate(chunks)}


def same(weights, arrays):
  assert set(weights.shapes) == set(arrays)
  for name, array in arrays.items():
    found = weights.read(name)
    assert found.dtype == array.dtype == weights.shapes[name].dtype
    assert weights.shapes[name].shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.fixture(scope='module')
def golden(tmp_path_factory):
  """A checkpoint of the authors' code, bit for bit."""
  prefix = tmp_path_factory.mktemp('golden') / 'params'
  with np.load(GOLDEN) as file:
    arrays = {
      name.removeprefix('params/'): file[name]
      for name in file
      if name.startswith('params/')
    }
  files, shards = map(int, GOLDEN_FILES), {}
  for name in sorted(arrays, key=lambda name: name.split('/')):
    array = arrays[name]
    experts = 4 if '/Moe/Mlp/' in name else 1
    counts = (experts, *(1,) * (array.ndim - 1))
    chunks = official_writer.split(array.shape, counts)
    shards[name] = {chunk: next(files) for chunk in chunks}
  official_writer.write(prefix, arrays, shards)
  for name, checksum in GOLDEN_CHECKSUMS.items():
    written = (prefix.parent / name).read_bytes()
    assert hashlib.sha256(written).hexdigest().startswith(checksum), name
  return prefix, arrays


def test_what_the_authors_wrote(golden):
  prefix, arrays = golden
  weights = open_weights(prefix)
  assert weights.where == str(prefix)
  assert weights.renamed == {} and weights.config is None
  same(weights, arrays)


def test_golden_logits(golden):
  weights = open_weights(golden[0])
  config = config_lib.default().model
  config.update(dict(patch=4, hidden=32, layers=4, heads=4, mlp=64))
  config.update(dict(num_classes=10, experts=4, moe_every=2))
  config.router.update(dict(selected=2, batch_priority=True, group_images=4))
  config.router.capacity_factor = 1.05
  model = build(
    config, (16, 16, 3), mesh_lib.create((1, 1, 1), jax.devices()[:1])
  )
  params = {}
  for name in weights.shapes:
    *parents, leaf = name.split('/')
    node = functools.reduce(lambda d, p: d.setdefault(p, {}), parents, params)
    node[leaf] = jnp.asarray(weights.read(name))
  with np.load(GOLDEN) as file:
    images, expected = file['images'], file['K2_bpr1_cf1.05/logits']
  apply = jax.jit(functools.partial(model.apply, experts='capacity'))
  logits, _ = apply(params, (images + 1) / 2)
  np.testing.assert_allclose(logits, expected, atol=2e-6)


def test_layouts(tmp_path):
  arrays = {
    'scalar': np.array(3.0, np.float32),
    'half/kernel': normal(6, 5, dtype=jnp.bfloat16),
    'square': normal(6, 8, 3),
    'block_10/bias': normal(4),
    'block_2/bias': -normal(4),
    'block_2/bias_too': normal(5),
    # Sorted by the parts of the names: 'block' is before 'block-2'.
    'block/bias': normal(2),
    'block-2/count': np.arange(3, dtype=np.int32),
  }
  shards = {
    'square': split(arrays['square'], (3, 2, 1), 3),
    'half/kernel': split(arrays['half/kernel'], (2, 1), 2),
    'block_2/bias': 3,  # in a file of its own
  }
  for version in ('20220622', None):
    for cut in (1 << 30, 16):  # in pieces of four float32
      prefix = tmp_path / f'{version}{cut}'
      weights = weights_of(prefix, arrays, shards, version=version, cut=cut)
      same(weights, arrays)
      for part in [
        (slice(0, 6), slice(0, 8), slice(0, 3)),
        (slice(1, 5), slice(3, 7), slice(1, 2)),
        (slice(2, 3), slice(None), slice(2, None)),
      ]:
        np.testing.assert_array_equal(
          weights.read('square', part), arrays['square'][part]
        )


def test_the_weights_of_a_training_state(tmp_path):
  arrays = {
    'params/head/bias': normal(4),
    'opt_state/0/mu/head/bias': -normal(4),
    'step': np.array(7, np.int32),
  }
  weights = weights_of(tmp_path / 'state', arrays)
  same(weights, {'head/bias': arrays['params/head/bias']})
  assert weights.renamed == {'head/bias': 'params/head/bias'}
  with pytest.raises(UserError, match='told apart'):
    weights_of(tmp_path / 'old', arrays, version=None)


def test_experts_go_to_their_devices_one_by_one(tmp_path, peak_of):
  """Peak memory is that of what is asked for, and of one read of it."""
  arrays = {KERNEL: normal(8, 512, 128), 'head/kernel': normal(64, 8)}
  expert = arrays[KERNEL][0].nbytes
  shards = {KERNEL: split(arrays[KERNEL], (4, 1, 1), 2)}
  prefix = tmp_path / 'params'
  weights = weights_of(prefix, arrays, shards)
  assert peak_of(lambda: open_weights(prefix)) < expert / 2
  one = (slice(3, 4), slice(None), slice(None))
  assert peak_of(lambda: weights.read(KERNEL, one)) < 2.2 * expert
  # A chunk has two experts.
  assert peak_of(lambda: weights.read(KERNEL)) < (8 + 2.2) * expert
  mesh = mesh_lib.create((1, 8, 1))
  places = NamedSharding(mesh, PartitionSpec('expert'))
  on_devices = jax.make_array_from_callback(
    weights.shapes[KERNEL].shape,
    places,
    functools.partial(weights.read, KERNEL),
  )
  np.testing.assert_array_equal(on_devices, arrays[KERNEL])


def test_from_elsewhere(tmp_path, monkeypatch):
  arrays = {'head/bias': normal(4)}
  weights_of(tmp_path / 'params', arrays)
  memory = fsspec.filesystem('memory')
  memory.put(str(tmp_path), '/vmoe', recursive=True)
  same(open_weights('memory://vmoe/params'), arrays)
  memory.rm('/vmoe', recursive=True)
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  imported = importlib.import_module('fsspec.registry')
  monkeypatch.delitem(imported._registry, 'gs', raising=False)
  with pytest.raises(UserError, match=r"pip install 'vmoe_robust\[gcs\]'"):
    open_weights('gs://bucket/params')
  monkeypatch.setitem(sys.modules, 's3fs', None)
  with pytest.raises(UserError, match='Install s3fs to access S3$'):
    open_weights('s3://bucket/params')
  with pytest.raises(UserError, match='give a path'):
    open_weights('nowhere://bucket/params')


class Far(LocalFileSystem):
  """Files that are fetched in ranges, as those in the cloud are."""

  protocol = 'far'
  root_marker, fetched = '', []

  def _open(self, path, mode='rb', **how):
    return FarFile(self, path, mode, **how)

  def exists(self, path, **how):
    if 'unreachable' in path:
      raise ConnectionError('no route')
    return super().exists(path, **how)


class FarFile(AbstractBufferedFile):
  def __init__(self, fs, path, mode, cache_type='none', **how):
    super().__init__(fs, path, mode, cache_type=cache_type, **how)

  def _fetch_range(self, start, end):
    self.fs.fetched.append(end - start)
    with open(self.path, 'rb') as file:
      file.seek(start)
      return file.read(end - start)


def test_little_is_fetched(tmp_path):
  fsspec.register_implementation('far', Far, clobber=True)
  arrays = {f'{i}/bias': normal(8) for i in range(100)}
  arrays[KERNEL] = normal(8, 512, 256)
  shards = {KERNEL: split(arrays[KERNEL], (8, 1, 1), 2)}
  weights_of(tmp_path / 'params', arrays, shards)
  Far.fetched.clear()
  weights = open_weights(f'far://{tmp_path}/params')
  assert len(Far.fetched) < 15  # the index, and twice four experts hopped over
  assert sum(Far.fetched) < 12 * (1 << 16) < arrays[KERNEL].nbytes / 4
  Far.fetched.clear()
  part = (slice(2, 3), slice(4, 8), slice(None))
  np.testing.assert_array_equal(
    weights.read(KERNEL, part), arrays[KERNEL][part]
  )
  assert Far.fetched == [arrays[KERNEL][2].nbytes]
  with pytest.raises(UserError, match='clf=.* cannot be reached: no route'):
    open_weights('far://unreachable', field='clf')
