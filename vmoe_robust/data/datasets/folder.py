"""A folder of image files: <data.dir>/<split>/<class>/<image>."""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import splits
from vmoe_robust.data.source import Example, Source

_ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
_LAYOUT = '<config.data.dir>/<split>/<class>/<image>.jpg'


@dataclasses.dataclass(frozen=True)
class _Folder:
  paths: tuple[str, ...]
  labels: tuple[int, ...]
  class_names: tuple[str, ...]
  multi_label: bool = False
  channels: int = 3

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    image = pathlib.Path(self.paths[index]).read_bytes()
    return dict(image=image, label=self.labels[index])

  def describe(self, index: int) -> str:
    return self.paths[index]


def open_split(data: ConfigDict, split: str) -> Source:
  """Opens a split; classes are numbered by name, over all splits together."""
  root = pathlib.Path(data.dir).expanduser()
  if not data.dir or not root.is_dir():
    raise UserError(
      f'config.data.dir={data.dir!r} is no directory, and config.data.name='
      f"'folder' reads {_LAYOUT}; give the folder with --config.data.dir=DIR"
    )
  folders = {
    part.name: {c.name: c for c in _directories(part)}
    for part in _directories(root)
  }
  names = tuple(sorted({name for part in folders.values() for name in part}))
  files = {
    part: [
      (str(path), names.index(name))
      for name in sorted(classes)
      for path in sorted(classes[name].iterdir())
      if path.suffix.lower() in _ENDINGS
    ]
    for part, classes in folders.items()
    if classes
  }
  if not files:
    raise UserError(
      f'config.data.dir={data.dir!r} holds no classes of images; '
      f"config.data.name='folder' reads {_LAYOUT}"
    )
  lengths = {part: len(found) for part, found in files.items()}
  chosen = [
    file
    for r in splits.ranges(data, split, lengths)
    for file in files[r.split][r.start : r.stop]
  ]
  paths, labels = zip(*chosen, strict=True)
  return _Folder(paths=paths, labels=labels, class_names=names)


def _directories(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    p for p in path.iterdir() if p.is_dir() and not p.name.startswith('.')
  )
