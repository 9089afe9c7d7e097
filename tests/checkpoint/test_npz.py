import pathlib
import zipfile

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.checkpoint import npz, open_weights
from vmoe_robust.config import UserError

RELEASED = pathlib.Path(__file__).parents[1] / 'golden'
RELEASED /= 'vit_small_released_names.npz'
KERNEL = 'Encoder/encoderblock_0/Mlp/Dense_0/kernel'
THERE = 'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'


def test_released_names():
  weights = open_weights(RELEASED)
  assert weights.renamed[KERNEL] == THERE
  assert weights.config is None and 'cls' not in weights.renamed
  with np.load(RELEASED) as file:
    assert len(weights.shapes) == len(file.files)
    expected = file[THERE]
  assert weights.shapes[KERNEL] == jax.ShapeDtypeStruct((32, 64), np.float32)
  np.testing.assert_array_equal(weights.read(KERNEL), expected)
  part = (slice(1, 5), slice(None, 7))
  np.testing.assert_array_equal(weights.read(KERNEL, part), expected[part])
  weights.close()


def test_bfloat16_and_the_order_of_fortran(tmp_path):
  half = np.array([[1.5, -2.0], [3.0, 4.0]], jnp.bfloat16)
  turned = np.asfortranarray(np.arange(6.0).reshape(2, 3))
  np.savez(tmp_path / 'vit.npz', half=half.view('V2'), turned=turned)
  weights = open_weights(tmp_path / 'vit.npz')
  assert weights.shapes['half'].dtype == jnp.bfloat16
  assert weights.read('half').dtype == jnp.bfloat16
  np.testing.assert_array_equal(weights.read('half'), half)
  np.testing.assert_array_equal(weights.read('turned'), turned)


@pytest.mark.parametrize(
  'save, times',
  [(np.savez, 1.5), (np.savez_compressed, 2.5)],
  ids=['stored', 'compressed'],
)
def test_only_what_is_asked_for_is_read(tmp_path, peak_of, save, times):
  arrays = {f'{i}': np.full((512, 512), i, np.float32) for i in range(8)}
  path, size = tmp_path / 'vit.npz', arrays['3'].nbytes
  save(path, **arrays)
  assert peak_of(lambda: open_weights(path).close()) < size / 2
  weights = open_weights(path)
  assert peak_of(lambda: weights.read('3')) < times * size
  np.testing.assert_array_equal(weights.read('3'), arrays['3'])
  weights.close()


def test_from_elsewhere():
  memory = fsspec.filesystem('memory')
  memory.put(str(RELEASED), '/vit.npz')
  weights = open_weights('memory://vit.npz')
  with np.load(RELEASED) as file:
    np.testing.assert_array_equal(weights.read(KERNEL), file[THERE])
  weights.close()
  memory.rm('/vit.npz')


def archive(path, method=zipfile.ZIP_STORED, **members):
  with zipfile.ZipFile(path, 'w', method) as file:
    for name, content in members.items():
      file.writestr(f'{name}.npy', content)


def header(shape, descr='<f4', version=b'\x01\x00'):
  text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n"
  return (
    b'\x93NUMPY' + version + len(text).to_bytes(2, 'little') + text.encode()
  )


BAD = {
  'shape beyond the data': (
    header((1 << 40,)),
    'should be 439804651',
  ),
  'product overflows': (header((1 << 63, 1 << 63)), 'should be 3402823'),
  'negative shape': (header((-1, -1)) + bytes(4), r'of shape \(-1, -1\)'),
  'trailing bytes': (header((1,)) + bytes(5), 'it is 71'),
  'pickled': (header((1,), '|O') + bytes(8), 'is of type object'),
  'text': (header((1,), '<U1') + bytes(4), 'is of type <U1'),
  'version': (
    header((1,), version=b'\x03\x00') + bytes(4),
    r'version \(3, 0\)',
  ),
  'no header': (b'', 'EOF'),
  'deep header': (header('(' * 9000), 'Header info length'),
}


@pytest.mark.parametrize('content, match', BAD.values(), ids=list(BAD))
def test_what_cannot_be(tmp_path, peak_of, content, match):
  archive(tmp_path / 'vit.npz', a=content)

  def refused():
    with pytest.raises(UserError, match=f'config.init_from=.*{match}'):
      open_weights(tmp_path / 'vit.npz')

  assert peak_of(refused) < 1 << 20


def test_what_unpacks_to_far_more(tmp_path, monkeypatch):
  zeros = np.zeros(1 << 16, np.float32)
  np.savez_compressed(tmp_path / 'vit.npz', a=zeros)
  open_weights(tmp_path / 'vit.npz').close()  # a fresh head may be that
  monkeypatch.setattr(npz, '_LARGE', 1 << 17)
  with pytest.raises(UserError, match='to 262272, which weights do not'):
    open_weights(tmp_path / 'vit.npz')


def test_no_such_file(tmp_path):
  path = tmp_path / 'vit.npz'
  with pytest.raises(UserError, match='clf=.*No such file'):
    open_weights(path, field='clf')
  path.write_bytes(b'no zip')
  with pytest.raises(UserError, match='clf=.*not a zip'):
    open_weights(path, field='clf')
  with pytest.raises(UserError, match='leave out step=1'):
    open_weights(path, step=1)


def test_one_name_twice(tmp_path):
  one = np.ones(1, np.float32)
  names = ('Encoder/LayerNorm_1', 'Transformer/LayerNorm_2')
  np.savez(tmp_path / 'vit.npz', **dict.fromkeys(names, one))
  with pytest.raises(UserError, match='Encoder/LayerNorm_1 twice'):
    open_weights(tmp_path / 'vit.npz')


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_any_bit_may_flip(tmp_path, flipped, save):
  """The archive has checksums, so no value is wrong; a name may be."""
  arrays = {'a': np.arange(6.0), 'b': np.ones((2, 3), np.float32)}
  path = tmp_path / 'vit.npz'
  save(path, **arrays)
  seen = flipped(path, [path], arrays, 200)
  assert seen - {'other name'} == {'refused', 'equal'}
