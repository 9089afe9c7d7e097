"""Equal weights are the same weights, and a bit of difference is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import integrity, weights_checksum
from vmoe_robust.checkpoint.weights_checksum import _sums
from vmoe_robust.checkpoint.weights_checksum import (
  weights_checksum as checksum,
)

X = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32)


def test_the_sums_are_those_of_numpy():
  """Word for word, of 32 bits that wrap around."""

  def mix(x):
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))

  bits = X.reshape(-1).view(np.uint32)
  place = np.arange(bits.size, dtype=np.uint32)
  expected = [
    mix(bits ^ mix(place + np.uint32(begin))).sum(dtype=np.uint32)
    for begin in weights_checksum._BEGIN
  ]
  assert _sums(X).tolist() == [int(one) for one in expected]


@pytest.mark.parametrize(
  'spec',
  [
    (),
    ('data',),
    ('expert', 'data'),
    (None, None, 'model'),
    (('data', 'expert'),),
  ],
)
def test_any_mesh_says_the_same(spec):
  mesh = mesh_lib.create((2, 2, 2))
  spread = jax.device_put(X, NamedSharding(mesh, PartitionSpec(*spec)))
  assert checksum({'a': {'b': spread}}) == checksum({'a': {'b': X}})


def _changed(place, value):
  x = X.copy()
  x[place] = value
  return x


def _others():
  yield {'b': X}  # another name
  yield {'a': X, 'b': X}
  yield {}
  yield {'a': X.reshape(4, 8, 6)}
  yield {'a': X.astype(jnp.bfloat16)}
  yield {'a': X.view(np.int32)}
  yield {'a': X[::-1]}
  yield {'a': _changed((7, 3, 5), np.nextafter(X[7, 3, 5], np.float32(9)))}
  for value in (0.0, -0.0, np.nan, np.inf, 1e-42):  # the last is subnormal
    yield {'a': _changed((0, 0, 0), value)}
  swapped = X.copy()
  swapped[0, 0, 0], swapped[0, 0, 1] = X[0, 0, 1], X[0, 0, 0]
  yield {'a': swapped}


def test_whatever_differs_is_told():
  every = [checksum({'a': X}), *map(checksum, _others())]
  assert len(set(every)) == len(every)
  assert all(len(one) == 8 for one in every)


@pytest.mark.parametrize(
  'kind', ['bool', 'int8', 'uint16', 'float16', 'bfloat16', 'int32', 'float32']
)
def test_each_type_and_shape_has_one(kind):
  found = set()
  for shape in ((), (1,), (1, 1), (0,), (2, 3)):
    zeros, ones = jnp.zeros(shape, kind), jnp.ones(shape, kind)
    found |= {checksum({'a': zeros}), checksum({'a': ones})}
  assert len(found) == 9  # of no numbers zeros and ones are the same


def test_64_bits_count():
  with jax.enable_x64():
    x = jnp.asarray([1.0, 1.0 + 2**-50], jnp.float64)
    assert checksum({'a': x}) != checksum({'a': x[::-1]})
    assert checksum({'a': x}) != checksum({'a': x.astype(jnp.float32)})


def saved(workdir, step=3, **trees):
  checkpoints = checkpoint.Checkpoints(workdir, config_lib.default().save)
  checkpoints.save(step, trees, {'data': 3}, now=True)
  checkpoints.close()
  return checkpoint.fingerprint(workdir, step)


def test_weights_that_are_trained_again_are_the_same(tmp_path):
  """The files are others, and so is what training alone needs."""
  params = {'kernel': jnp.asarray(X)}
  first = saved(tmp_path / 'a', params=params, rest={'m': jnp.zeros(3)})
  again = saved(tmp_path / 'b', params=params, rest={'m': jnp.ones(3)})
  assert first == again == checksum(params)
  seals = [
    integrity.read_seal(epath.Path(tmp_path / name / 'checkpoints' / '3'))
    for name in 'ab'
  ]
  assert seals[0]['files'] != seals[1]['files']


def test_averaged_weights_are_what_is_judged(tmp_path):
  rest, ema = {'m': jnp.zeros(3)}, {'kernel': jnp.asarray(X)}
  found = {
    saved(
      tmp_path / str(value), params={'kernel': X + value}, ema=ema, rest=rest
    )
    for value in (0, 1)
  }
  assert found == {checksum(ema)}


def test_older_checkpoints_are_known_by_their_files(tmp_path):
  saved(tmp_path, params={'kernel': jnp.asarray(X)}, rest={'m': jnp.zeros(3)})
  step = epath.Path(tmp_path / 'checkpoints' / '3')
  seal = integrity.read_seal(step)
  new = seal.pop('weights')
  (step / integrity.SEAL).write_text(integrity.to_json(seal))
  old = checkpoint.fingerprint(tmp_path, 3)
  assert old != new
  seal['metrics'] = {'eval_loss': 0.5}  # which may be measured later
  (step / integrity.SEAL).write_text(integrity.to_json(seal))
  assert checkpoint.fingerprint(tmp_path, 3) == old
