"""Classes go by name: the labels of a data set as those of a model."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Example, Source, check_label

_SHOWN = 5  # names in an error


def numbers_only(names: Sequence[str]) -> bool:
  """Whether names are '0', '1', '2' and so on, which say nothing."""
  return tuple(names) == tuple(str(i) for i in range(len(names)))


def names_compare(one: Sequence[str], other: Sequence[str]) -> bool:
  """Whether two lists of names can be compared: both are known and say enough.

  A list of '0', '1' and so on says nothing beside one of words. Beside other
  whole numbers, such as '1', '2' and so on, it does.
  """
  if not one or not other:
    return False
  whole = [all(map(_is_whole, names)) for names in (one, other)]
  return all(whole) or not (numbers_only(one) or numbers_only(other))


def require_one_order(names: Sequence[str], of: str) -> None:
  """Refuses folders whose order cannot be that of a model without names.

  Versions that did not save the names of classes ordered all folders as text,
  where '10' comes before '2'. Folders that are whole numbers are now ordered as
  numbers, so that the labels of such a model may be others today.

  Args:
    names: of the folders of `config.data.name='folder'`.
    of: the model, for the error.

  Raises:
    UserError: the two orders differ.
  """
  names = list(names)
  if not all(map(_is_whole, names)) or sorted(names) == sorted(names, key=int):
    return
  raise UserError(
    f'the classes of {of} have no saved names, and the class folders in '
    'config.data.dir are whole numbers, whose order as text (in which runs '
    'without saved names were trained) and as numbers differ; rename the '
    "folders in all splits: a letter before each ('c10', 'c2') keeps the order "
    "of text, zeros ('02', '10') that of numbers"
  )


def _is_whole(name: str) -> bool:
  return name.isascii() and name.isdecimal()


def match_classes(
  source: Source, names: Sequence[str], field: str = 'config.data.name'
) -> Source:
  """The source with labels that number the classes as a model does.

  Classes are the same if they have the same name. The source may have them in
  another order, and may lack some. Where the names on one side alone are only
  numbers ('0', '1', ...), or the model's are not known, names say nothing; then
  the classes must be as many, and a warning says that no more was compared.

  Args:
    source: a split.
    names: of the model's classes, in their order; empty if they are not known.
    field: what the user set to choose the data, for the errors.

  Returns:
    The same source if the names are equal or say nothing.

  Raises:
    UserError: the source has classes that the model does not know, as many
      classes as the model were needed, or a name stands for two classes.
  """
  there, names = tuple(source.class_names), tuple(names)
  if there == names:
    return source
  if not names_compare(there, names):
    if names and len(names) != len(there):
      raise UserError(
        f'the {len(there)} classes of {field} and the {len(names)} of the '
        'model cannot be matched, because one side names its classes by '
        'number only; use data with as many classes'
      )
    logging.warning(
      'the classes of %s are compared with those of the model by their number '
      '(%d) alone, because %s; make sure that they are in the same order',
      field,
      len(there),
      'the model does not name its own'
      if not names
      else 'one side names them by number only',
    )
    return source
  _check_names(there, names, field)
  return _Matched(source, names)


class _Matched:
  """A source whose labels number another list of classes."""

  def __init__(self, source: Source, names: tuple[str, ...]):
    self._source = source
    self._new = np.array([names.index(n) for n in source.class_names], int)
    self.num_classes, self.class_names = len(names), names
    self.multi_label, self.channels = source.multi_label, source.channels
    self.fingerprint, self.lengths = source.fingerprint, source.lengths

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    example = self._source[index]
    label = example['label']
    if self.multi_label:
      hot = np.zeros(self.num_classes, np.float32)
      hot[self._new] = label
      return dict(image=example['image'], label=hot)
    check_label(label, len(self._new))
    return dict(image=example['image'], label=int(self._new[label]))

  def describe(self, index: int) -> str:
    return self._source.describe(index)


def _check_names(there: tuple[str, ...], names: tuple[str, ...], field: str):
  for side, found in ((f'{field} has', there), ('the model has', names)):
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
      raise UserError(
        f'{side} several classes named {_listed(twice)}, so classes cannot be '
        'matched by name; use data with the same classes in the same order'
      )
  new = [name for name in there if name not in set(names)]
  if not new:
    return
  missing = [name for name in names if name not in set(there)]
  lacks = f', and lacks {_listed(missing)}' if missing else ''
  raise UserError(
    f'{field} has classes that the model does not know: {_listed(new)}{lacks}; '
    'use data whose classes have the names of the model, or train a model on '
    'them'
  )


def _listed(names: Sequence[str]) -> str:
  rest = len(names) - _SHOWN
  more = [f'{rest} more'] if rest > 0 else []
  return ', '.join([*map(repr, names[:_SHOWN]), *more])
