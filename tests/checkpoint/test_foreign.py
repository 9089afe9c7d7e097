import numpy as np
import pytest

from vmoe_robust import checkpoint
from vmoe_robust.config import UserError


def test_bfloat16_and_names(tmp_path):
  value = np.array([1.5, -2.0], np.float32)
  half = (value.view(np.uint32) >> 16).astype(np.uint16).view('V2')
  name = 'Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias'
  np.savez(tmp_path / 'vit.npz', **{name: half})
  tree = checkpoint.read_npz(tmp_path / 'vit.npz')
  found = tree['Encoder']['encoderblock_0']['Mlp']['Dense_0']['bias']
  np.testing.assert_array_equal(found, value)


def test_unreadable_file(tmp_path):
  path = tmp_path / 'vit.npz'
  with pytest.raises(UserError, match='config.init_from=.*cannot be read'):
    checkpoint.read_npz(path)
  path.write_bytes(b'no zip')
  with pytest.raises(UserError, match='config.init_from=.*cannot be read'):
    checkpoint.read_npz(path)


def test_positions_are_resized_linearly_and_the_token_is_kept():
  y, x = np.mgrid[:3, :3].astype(np.float32)
  grid = np.stack([y, x], -1).reshape(1, 9, 2)
  token = np.full((1, 1, 2), 7.0, np.float32)
  old = np.concatenate([token, grid], 1)
  new = checkpoint.resize_positions(old, 26)
  np.testing.assert_array_equal(new[:, :1], token)
  y, x = np.mgrid[0:2:5j, 0:2:5j]
  np.testing.assert_allclose(
    new[0, 1:], np.stack([y, x], -1).reshape(25, 2), atol=1e-6
  )
  assert checkpoint.resize_positions(grid, 25).shape == (1, 25, 2)
  np.testing.assert_array_equal(checkpoint.resize_positions(old, 10), old)
  with pytest.raises(UserError, match='square'):
    checkpoint.resize_positions(old, 13)
