"""Data sets that TensorFlow Datasets prepared, read without TensorFlow.

Only what is on disk is read: never a download, never the data set's module.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import splits
from vmoe_robust.data.source import Example, Source, check_label, digest
from vmoe_robust.files import local_path

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_INFO = 'dataset_info.json'
# Features whose text names an example, as the data sets of TFDS call them.
_NAMES = ('file_name', 'image/filename', 'filename', 'id', 'image_id')


class _Tfds:
  """A split of a data set in ArrayRecord; pickles as what opens it again."""

  def __init__(self, path: str, split: str):
    """Opens what `split` names, whole splits and parts of them, for reading.

    Raises:
      UserError: it has no images and classes, or images of other pixels than
        0 to 255.
    """
    import tensorflow_datasets as tfds  # takes a second

    self._path, self._split = path, split
    builder = _builder(path)
    features = builder.info.features
    keys = builder.info.supervised_keys or ()
    self._image = _find(path, features, keys, _is_image, 'image')
    self._label = _find(path, features, keys, _classes, 'label')
    _require_bytes(path, self._image, features[self._image])
    skip = {self._image: tfds.decode.SkipDecoding()}
    self._examples = builder.as_data_source(split=split, decoders=skip)
    self._text = next((n for n in _NAMES if n in features), None)
    classes = _classes(features[self._label])
    self.num_classes = classes.num_classes
    self.class_names = tuple(map(str, classes.names))
    self.multi_label = features[self._label] is not classes
    self.channels = 1 if features[self._image].shape[-1] == 1 else 3
    self.lengths = _lengths(builder)
    # Records in another order, of as many bytes, are not noticed.
    self.fingerprint = digest([builder.info.full_name, split, *_sizes(builder)])

  def __reduce__(self):
    return _Tfds, (self._path, self._split)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    example = self._examples[index]
    image, label = example[self._image], example[self._label]
    if self.multi_label:
      label = np.asarray(label, np.int64)
      check_label(label, self.num_classes)  # -1 would be the last class
      hot = np.zeros(self.num_classes, np.float32)
      hot[label] = 1
      return dict(image=image, label=hot)
    return dict(image=image, label=int(label))

  def describe(self, index: int) -> str:
    name = f'{self._path} {self._split} example {index}'
    if not self._text:
      return name
    try:
      text = self._examples[index][self._text]
    except Exception:  # the record itself may be what is damaged
      return name
    text = text.decode(errors='replace') if isinstance(text, bytes) else text
    return f'{name} ({text})'


def open_split(
  data: ConfigDict, split: str, built_in: Sequence[str] = ()
) -> Source:
  """Opens a split of `<data.dir>/<name>[/<config>]/<highest version>`.

  The name may say more: 'name/config', 'name:1.0.0', 'name/config:1.0.0'.
  """
  path = _find_directory(data, built_in)
  builder = _builder(path)
  infos = builder.info.splits
  found = splits.ranges(data, split, _lengths(builder))
  for name in dict.fromkeys(r.split for r in found):
    missing = [p for p in infos[name].filepaths if not p.exists()]
    if missing:
      raise UserError(
        f'config.data.name={data.name!r} lacks {len(missing)} of the '
        f'{infos[name].num_shards} files of its split {name!r}, the first '
        f'{missing[0]}; copy or convert the directory again'
      )
  return _Tfds(path, '+'.join(f'{r.split}[{r.start}:{r.stop}]' for r in found))


def _builder(path: str):
  """The builder of a prepared directory, set to its ArrayRecord files."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(path)
  formats = {f.value for f in builder.info.available_file_formats()}
  if 'array_record' not in formats:
    raise UserError(
      f'{path} holds {", ".join(sorted(formats)) or "no known"} files, which '
      'only TensorFlow reads; convert them with '
      f'python -m vmoe_robust.data.convert {path}'
    )
  # A converted directory lists ArrayRecord second, as an alternative.
  builder.info.set_file_format(
    'array_record', override=True, override_if_initialized=True
  )
  return builder


def _lengths(builder) -> dict[str, int]:
  splits_there = builder.info.splits.items()
  return {name: info.num_examples for name, info in splits_there}


def _sizes(builder) -> Iterator[str]:
  """What tells two preparations of a data set of one name and version apart."""
  for name, info in sorted(builder.info.splits.items()):
    yield f'{name} {info.shard_lengths} {info.num_bytes}'


def _require_bytes(path: str, name: str, feature):
  """Refuses images that are stored as bytes of something else.

  TFDS writes a number of 32 bits as the four channels of a PNG, and one of 16
  bits in a scale that the file does not say.

  Raises:
    UserError: they are such images.
  """
  kind = np.dtype(feature.np_dtype)
  if kind != np.uint8:
    raise UserError(
      f'{path} has images ({name!r}) of {kind}, and pixels must be '
      'uint8, 0 to 255; write them so, as PNG in a folder for example '
      "(config.data.name='folder')"
    )


# --- Finding the directory --------------------------------------------------


def _find_directory(data: ConfigDict, built_in: Sequence[str]) -> str:
  usual = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  root = local_path(data.dir or usual, 'config.data.dir')
  name, _, version = data.name.partition(':')
  path = root.joinpath(*name.split('/'))
  if version:
    path = path / version
  if not path.is_dir() or not name:
    raise _not_found(data, root, path, built_in)
  return str(_prepared(data, path))


def _prepared(data: ConfigDict, path: pathlib.Path) -> pathlib.Path:
  """The directory of the only config's highest version, at or below path."""
  if (path / _INFO).is_file():
    return path
  below = sorted(p for p in path.iterdir() if p.is_dir())
  versions = [p for p in below if _VERSION.fullmatch(p.name)]
  if versions:
    path = max(versions, key=lambda p: tuple(map(int, p.name.split('.'))))
    if (path / _INFO).is_file():
      return path
  elif len(below) == 1:
    return _prepared(data, below[0])
  elif below:
    choices = ', '.join(f'{data.name}/{p.name}' for p in below)
    raise UserError(
      f'config.data.name={data.name!r} leaves open which config of it is '
      f'meant; use one of {choices}'
    )
  raise UserError(
    f'config.data.name={data.name!r}: {path} holds no {_INFO}, so it was not '
    'prepared to the end; ' + _HOW
  )


_HOW = (
  'prepare it with TFDS on a machine with TensorFlow '
  "(download_and_prepare(file_format='array_record')) and copy it there, or "
  'turn a TFRecord directory into ArrayRecord with '
  'python -m vmoe_robust.data.convert SRC_DIR'
)


def _not_found(data, root, path, built_in) -> UserError:
  here = f'config.data.dir={str(root)!r}'
  if not root.is_dir():
    here += ' (no such directory)'
    there = []
  else:
    there = [p.name for p in sorted(root.iterdir()) if p.is_dir()]
  known = [*built_in, *there]
  near = difflib.get_close_matches(data.name.split('/')[0], known, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  return UserError(
    f'config.data.name={data.name!r} was not found: looked for {path} in '
    f'{here}; {hint}there are {", ".join(known)}; ' + _HOW
  )


# --- Finding the features ---------------------------------------------------


def _is_image(feature) -> bool:
  import tensorflow_datasets as tfds

  return isinstance(feature, tfds.features.Image)


def _classes(feature):
  """The ClassLabel that a feature is, or is a sequence of; None if neither."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  if isinstance(feature, tfds.features.ClassLabel):
    return feature
  return None


def _find(path: str, features, keys: Sequence, wanted, kind: str) -> str:
  """The name of the one feature of a kind: supervised key, name, or type."""
  found = [name for name, feature in features.items() if wanted(feature)]
  preferred = [name for name in (*keys, kind, kind + 's') if name in found]
  if preferred or len(found) == 1:
    return (preferred or found)[0]
  raise UserError(
    f'{path} is no image classification data set: its {kind} could be any of '
    f'{found}, of the features {sorted(features)}; use another config.data.name'
  )
