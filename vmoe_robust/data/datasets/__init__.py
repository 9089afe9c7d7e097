"""Where images come from: one file a kind of source, listed here."""

from ml_collections import ConfigDict

from vmoe_robust.data.datasets import digits, folder, tfds
from vmoe_robust.data.source import Source

# Any other name is a TensorFlow data set's.
OPENERS = {
  'digits': digits.open_split,
  'folder': folder.open_split,
}


def open_source(data: ConfigDict, split: str) -> Source:
  """Opens a split of the data set that `config.data` names.

  Args:
    data: `config.data`; its name and dir say what and where.
    split: in the syntax of TensorFlow Datasets, such as 'train[:10%]'.

  Raises:
    UserError: there is no such data set or split, the split is empty, or the
      data are not where they should be.
  """
  if data.name in OPENERS:
    return OPENERS[data.name](data, split)
  return tfds.open_split(data, split, built_in=tuple(OPENERS))
