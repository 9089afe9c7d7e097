"""Where x_adv is kept."""

import json

from vmoe_robust.robustness.images import Archive


def test_a_chunk_has_no_more_rows_than_there_are_examples(tmp_path):
  """It is compressed as a whole each time one of its rows is saved."""
  for examples in (44, 10**6):
    Archive(tmp_path / str(examples), (6, 6, 1), examples)
    (file,) = (tmp_path / str(examples)).rglob('zarr.json')
    grid = json.loads(file.read_text())['chunk_grid']
    rows, *shape = grid['configuration']['chunk_shape']
    assert shape == [6, 6, 1]
    assert rows == min(examples, 2**25 // (4 * 36))
