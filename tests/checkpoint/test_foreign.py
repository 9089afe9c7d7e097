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
