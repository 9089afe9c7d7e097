"""What tells that weights of others changed since they were judged."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from tests.checkpoint import official_writer
from vmoe_robust.checkpoint import files as checkpoint_files
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.checkpoint.export import export
from vmoe_robust.checkpoint.safe_tensors import CLASSES


@pytest.mark.parametrize('classes', [0, 21_841])  # a header of 10 KB, or 300
def test_content_counts_where_size_and_time_are_the_same(tmp_path, classes):
  stamps, names = set(), json.dumps([f'class {i}' for i in range(classes)])
  for value in (1, 2):
    arrays = {'a': np.full(1 << 16, 0, np.float32)}
    arrays['a'][1 << 15] = value  # far from both ends
    first = tmp_path / 'first.safetensors'
    safetensors.numpy.save_file(arrays, first, {CLASSES: names})
    out = tmp_path / 'out.safetensors'
    export(open_weights(first), out, overwrite=True)
    os.utime(out, (1e9, 1e9))
    stamps.add(open_weights(out).stamp())
  assert len(stamps) == 2


@pytest.mark.parametrize(
  'name, whole, is_same',
  [
    ('a.safetensors', 0, True),
    ('a.npz', 0, True),
    ('other.safetensors', 0, False),  # is too large to be read
    ('other.safetensors', 1 << 20, True),
  ],
)
def test_a_copy_is_known(tmp_path, monkeypatch, name, whole, is_same):
  monkeypatch.setattr(checkpoint_files, '_WHOLE', whole)
  path, arrays = tmp_path / name, {'cls': np.zeros((1, 1, 4), np.float32)}
  if path.suffix == '.npz':
    np.savez(path, **arrays)
  else:
    safetensors.numpy.save_file(arrays, tmp_path / 'other.safetensors')
    if name != 'other.safetensors':  # that of others has no checksums
      export(open_weights(tmp_path / 'other.safetensors'), path)
  copy = tmp_path / f'copy{path.suffix}'
  copy.write_bytes(path.read_bytes())
  os.utime(copy, (1e9, 1e9))
  assert (open_weights(copy).stamp() == open_weights(path).stamp()) == is_same


@pytest.mark.parametrize('whole', [0, 1 << 20])
def test_all_files_of_an_official_checkpoint_count(
  tmp_path, monkeypatch, whole
):
  monkeypatch.setattr(checkpoint_files, '_WHOLE', whole)
  prefix = tmp_path / 'p'
  arrays = {'a': np.zeros(3, np.float32), 'b': np.zeros(3, np.float32)}
  official_writer.write(prefix, arrays, {'a': 0, 'b': 1})
  for other in ('p2.index', 'p.txt'):
    (tmp_path / other).write_bytes(b'of something else')
  files = sorted(tmp_path.glob('p.*-*'))
  assert len(files) == 2
  stamps = [open_weights(prefix).stamp()]
  for file in files:
    content, time = file.read_bytes(), file.stat().st_mtime
    file.write_bytes(content.replace(bytes(4), b'1234', 1))
    os.utime(file, (time, time))
    stamps.append(open_weights(prefix).stamp())
  assert len(set(stamps)) == 3
