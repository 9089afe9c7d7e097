"""A folder of image files: <data.dir>/<split>/<class>/<image>."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from absl import logging
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import splits
from vmoe_robust.data.decode import CorruptImage
from vmoe_robust.data.source import Example, Source, digest
from vmoe_robust.files import local_path

_ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp'),
  *('.tif', '.tiff'),
)
_NAMED = 3  # of what is left out, in a warning
_LAYOUT = '<config.data.dir>/<split>/<class>/<image>.jpg'


@dataclasses.dataclass(frozen=True)
class _Folder:
  root: str
  paths: tuple[str, ...]
  labels: tuple[int, ...]
  class_names: tuple[str, ...]
  lengths: Mapping[str, int]  # of images, by split
  multi_label: bool = False
  channels: int = 3

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @functools.cached_property
  def fingerprint(self) -> str:
    # Names alone: to ask for the sizes of a million files takes minutes.
    return digest(path.removeprefix(self.root) for path in self.paths)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    path = pathlib.Path(self.paths[index])
    if path.is_symlink() and not path.exists():
      raise CorruptImage(f'it is a link to nothing, {os.readlink(path)}')
    return dict(image=path.read_bytes(), label=self.labels[index])

  def describe(self, index: int) -> str:
    return self.paths[index]


class _Split(NamedTuple):
  """What the folder of a split holds."""

  images: dict[str, list[str]]  # paths by class
  left_out: list[str]  # paths that are no image, and why
  unreadable: list[str]  # folders of classes with files, none an image
  empty: list[str]  # folders of classes without any file


def open_split(data: ConfigDict, split: str) -> Source:
  """Opens a split; classes are numbered by name, over all splits together.

  A folder beside the splits that has no images in folders of classes is no
  split, and a class that has no images in any split is no class.

  Names that are all whole numbers are in the order of the numbers, others in
  that of their characters. The images of a split are in an order that looks
  random and follows from their names alone, as TFDS has them, so that a part
  such as 'test[:1000]' is a sample of all classes. Whatever is not read is
  named in a warning.

  Raises:
    UserError: there is no such folder or split, or none of the files of a class
      is an image.
  """
  root = local_path(data.dir, 'config.data.dir')
  if not data.dir or not root.is_dir():
    raise UserError(
      f'config.data.dir={data.dir!r} is no directory, and config.data.name='
      f"'folder' reads {_LAYOUT}; give the folder with --config.data.dir=DIR"
    )
  parts = {
    entry.name: _look_through(entry.path)
    for entry in _entries(root)
    if entry.is_dir() and not entry.name.startswith('.')
  }
  asked = re.findall(r'[^+\[\]]+', split)
  others = [
    name
    for name, part in parts.items()
    if not any(part.images.values()) and not (part.images and name in asked)
  ]
  for name in others:
    del parts[name]
  if not parts:
    raise UserError(
      f'config.data.dir={data.dir!r} holds no classes of images; '
      f"config.data.name='folder' reads {_LAYOUT}"
    )
  names = _in_order(
    {c for part in parts.values() for c, found in part.images.items() if found}
  )
  lengths = {
    name: sum(map(len, part.images.values())) for name, part in parts.items()
  }
  if others:
    logging.warning(
      'config.data.dir=%s: %s hold no images in folders of classes, and are no '
      'splits', root, _some(others),
    )  # fmt: skip
  found = splits.ranges(data, split, lengths)
  used = {r.split: parts[r.split] for r in found}
  _tell(root, list(used.values()))
  files = {
    name: sorted(
      (
        (path, label)
        for label, c in enumerate(names)
        for path in part.images.get(c, ())
      ),
      # Noise, but always the same.
      key=lambda file: digest([file[0].removeprefix(str(root))]),
    )
    for name, part in used.items()
  }
  chosen = [f for r in found for f in files[r.split][r.start : r.stop]]
  paths, labels = zip(*chosen, strict=True)
  seen = set(labels)
  told = {
    os.path.basename(path) for part in used.values() for path in part.empty
  }
  lost = [c for label, c in enumerate(names) if label not in seen]
  if not told.issuperset(lost):
    logging.warning(
      '%s of %s has images of %d of %d classes, and none of %s',
      split, root, len(seen), len(names), _some(lost),
    )  # fmt: skip
  return _Folder(str(root), paths, labels, names, lengths)


def _look_through(split: str) -> _Split:
  found = _Split({}, [], [], [])
  for entry in _entries(split):
    if entry.name.startswith('.'):
      found.left_out.append(f'{entry.path} (hidden)')
    elif not entry.is_dir():
      found.left_out.append(f'{entry.path} (in no class)')
    else:
      paths, others = [], []
      for inside in _entries(entry.path):
        why = _why_not(inside)
        if why:
          others.append(f'{inside.path} ({why})')
        else:
          paths.append(inside.path)
      found.images[entry.name] = paths
      found.left_out.extend(others)
      if not paths:
        (found.unreadable if others else found.empty).append(entry.path)
  return found


def _why_not(entry: os.DirEntry) -> str:
  """Why an entry of the folder of a class is not read; empty if it is."""
  if entry.name.startswith('.'):
    return 'hidden'
  if entry.is_dir():
    return 'a folder inside a class'
  ending = os.path.splitext(entry.name)[1].lower()
  if ending not in _ENDINGS:
    return f'its ending {ending or "is missing"}'
  return ''


def _tell(root: pathlib.Path, parts: list[_Split]):
  """Warns of what is left out.

  Raises:
    UserError: nothing of a class can be read.
  """
  unreadable = [path for part in parts for path in part.unreadable]
  if unreadable:
    raise UserError(
      f'config.data.dir={str(root)!r}: none of the files in '
      f'{_some(unreadable)} is an image that can be read, by its ending '
      f'({", ".join(_ENDINGS)}); convert them, or remove the folder'
    )
  left_out = [path for part in parts for path in part.left_out]
  empty = [path for part in parts for path in part.empty]
  said = []
  if left_out:
    said.append(f'{len(left_out)} entries are left out: {_some(left_out)}')
  if empty:
    said.append(f'{len(empty)} classes have no images: {_some(empty)}')
  if said:
    logging.warning('config.data.dir=%s: %s', root, '; '.join(said))


def _some(paths: list[str]) -> str:
  rest = len(paths) - _NAMED
  more = [f'{rest} more'] if rest > 0 else []
  return ', '.join([*paths[:_NAMED], *more])


def _in_order(names: set[str]) -> tuple[str, ...]:
  """By number if all are whole numbers, else by their characters."""
  if all(name.isascii() and name.isdecimal() for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))


def _entries(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
  """The entries of a folder by name; their kinds cost no look at each."""
  with os.scandir(path) as entries:
    yield from sorted(entries, key=lambda entry: entry.name)
