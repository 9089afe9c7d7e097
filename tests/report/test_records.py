import numpy as np
import pytest

from vmoe_robust.report.records import read_records, write_records


def test_columns_come_back(tmp_path):
  columns = dict(
    index=np.arange(4),
    label=np.arange(4, dtype=np.int32),
    loss=np.array([0.5, np.nan, np.inf, 1], np.float32),
    broken=np.array([True, False, True, False]),
    name=np.array(['a', 'bb', '', 'ü']),
    iou=np.arange(12, dtype=np.float32).reshape(4, 3)[:, ::-1],
  )
  path = tmp_path / 'attack' / 'records.parquet'
  write_records(path, columns)
  found = read_records(path)
  assert list(found) == list(columns)
  for name, values in columns.items():
    np.testing.assert_array_equal(found[name], values)
    if name != 'name':
      assert found[name].dtype == values.dtype
  assert [p.name for p in path.parent.iterdir()] == ['records.parquet']


def test_no_rows(tmp_path):
  path = tmp_path / 'records.parquet'
  write_records(path, dict(a=np.zeros(0, np.int32), b=np.zeros((0, 2))))
  found = read_records(path)
  assert found['a'].shape == (0,) and found['b'].shape == (0, 2)


def test_columns_of_different_length_are_refused(tmp_path):
  path = tmp_path / 'records.parquet'
  with pytest.raises(ValueError, match="'b': 2"):
    write_records(path, dict(a=np.zeros(3), b=np.zeros(2)))
  assert not path.exists()
