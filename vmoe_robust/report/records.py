"""One row an example, in Parquet."""

import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vmoe_robust import files


def write_records(
  path: str | os.PathLike, columns: Mapping[str, np.ndarray]
) -> None:
  """Writes columns of equal length: the old file or the new, never a part.

  Args:
    path: of the Parquet file.
    columns: arrays of shape (examples,), or (examples, width), whose rows
      become lists of fixed size; numbers, bools or text.

  Raises:
    ValueError: the columns differ in length.
  """
  lengths = {name: len(values) for name, values in columns.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f'columns differ in length: {lengths}')
  made = pa.table({name: _to_arrow(values) for name, values in columns.items()})
  with files.replacing(path) as draft:
    parquet.write_table(made, draft, write_page_checksum=True)


def read_records(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The columns that `write_records` wrote."""
  made = parquet.read_table(path, page_checksum_verification=True)
  return {name: to_numpy(made[name]) for name in made.column_names}


def _to_arrow(values):
  flat = pa.array(np.ascontiguousarray(values).reshape(-1))
  if values.ndim == 1:
    return flat
  return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
  """A column of Parquet as `write_records` was given it."""
  column = column.combine_chunks()
  if not pa.types.is_fixed_size_list(column.type):
    return column.to_numpy(zero_copy_only=False)
  flat = column.flatten().to_numpy(zero_copy_only=False)
  return flat.reshape(len(column), column.type.list_size)
