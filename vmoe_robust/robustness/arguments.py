"""Arguments of `robust_accuracy`, refused as the command line's fields are."""

import math
import numbers
import os
import pathlib
from typing import Any

import numpy as np

from vmoe_robust.attacks import ensembles
from vmoe_robust.config import UserError, choose
from vmoe_robust.config.limits import radius
from vmoe_robust.files import local_path

_NORMS = {'linf': 'linf', 'inf': 'linf', 'l2': 'l2', '2': 'l2', 'l1': 'l1'}
_NORMS |= {'1': 'l1', 'l_inf': 'linf', 'l_2': 'l2', 'l_1': 'l1'}


def images_and_labels(
  images: object, labels: object
) -> tuple[np.ndarray, np.ndarray]:
  """Images as uint8 or float32, labels as int32.

  Raises:
    UserError: they are no images in [0, 1], or not one class for each.
  """
  images = checked_images(images)
  try:
    labels = np.asarray(labels)
  except ValueError as error:  # of several lengths
    raise UserError(
      f'labels are no array ({error}); give one class for each image'
    ) from error
  if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
    raise UserError(
      f'labels are {labels.dtype}{list(labels.shape)}; give whole numbers, one '
      f'class for each of the {len(images)} images: labels.astype(int), or '
      'labels.argmax(-1) of a column a class'
    )
  small = labels.astype(np.int32)
  if (small != labels).any():
    raise UserError(
      f'labels are between {labels.min()} and {labels.max()}; give classes '
      'from 0 on'
    )
  return images, small


def checked_images(images: object) -> np.ndarray:
  """A batch of images as uint8 or float32.

  Raises:
    UserError: it is none, or not in [0, 1].
  """
  try:
    images = np.asarray(images)
  except ValueError as error:  # of several sizes
    raise UserError(
      f'images are no array ({error}); give [batch, height, width, channels]'
    ) from error
  if images.ndim != 4 or not images.size:
    raise UserError(
      f'images are of shape {images.shape}; give [batch, height, width, '
      'channels], one image at least'
    )
  if images.dtype == np.uint8:
    return images
  if images.dtype.kind not in 'fiub' and 'float' not in images.dtype.name:
    raise UserError(
      f'images are {images.dtype}; give uint8, or floats in [0, 1]'
    )
  images = images.astype(np.float32)
  if not ((images >= 0) & (images <= 1)).all():
    raise UserError(
      f'images are between {images.min()} and {images.max()}; give pixels in '
      '[0, 1], as images / 255 are, or uint8, and let the model normalise'
    )
  return images


def require_shape(
  images: tuple[int, ...], wanted: tuple[int, int, int]
) -> None:
  """Refuses images of another shape than the model takes.

  Raises:
    UserError: says what to do with such images.
  """
  if images == wanted:
    return
  way = 'resize them, as jax.image.resize does'
  if images[2] != wanted[2]:
    way = f'give them {wanted[2]} channels, the last axis'
    if images[0] == wanted[2]:
      way = 'move the channels last, as images.transpose(0, 2, 3, 1) does'
  raise UserError(
    f'images are {list(images)}; the model takes {list(wanted)}, so {way}'
  )


def classes(labels: np.ndarray, count: int) -> None:
  """Refuses labels that are no class of the model.

  Raises:
    UserError: some are below 0, or beyond the last class.
  """
  if labels.max() >= count:
    raise UserError(
      f'labels go up to {labels.max()}; the model has {count} classes'
    )
  none = int((labels < 0).sum())
  if none:
    raise UserError(
      f'{none} of {len(labels)} labels are below 0, such as {labels.min()}: '
      'these images have no class; leave them out'
    )


def attack(value: Any) -> str | tuple[str, ...]:
  """The name of an attack, or several.

  Raises:
    UserError: there is no such attack, or none at all.
  """
  if isinstance(value, str):
    return _attack_name(value)
  try:
    several = tuple(value)
  except TypeError:
    several = ()
  if not several or not all(isinstance(one, str) for one in several):
    raise UserError(
      f"attack={value!r} names no attack; use 'autoattack', or a list such as "
      "['apgd_ce', 'square']"
    )
  names = tuple(_attack_name(one) for one in several)
  if len(names) == 1:
    return names[0]
  for name in names:
    if name.startswith('autoattack'):
      raise UserError(
        f'attack={value!r} has {name}, which stands alone; join single '
        "attacks, as in ['apgd_ce', 'square']"
      )
  return names


def _attack_name(value: str) -> str:
  known = ensembles.names()
  name = value.lower().replace('-', '_')
  name = 'autoattack' if name in ('aa', 'auto_attack') else name
  return choose('attack', name if name in known else value, known)


def ball(norm: object, eps: Any) -> tuple[str, float]:
  """The norm by its name, and the radius.

  Raises:
    UserError: there is no such norm, or `eps` is no radius in it, or None in
      another one than Linf.
  """
  text = str(norm).lower().removesuffix('.0').replace('∞', 'inf')
  if text not in _NORMS:
    raise UserError(f"norm={norm!r} is not known; use 'Linf', 'L2' or 'L1'")
  name = _NORMS[text]
  if eps is None and name == 'linf':
    eps = 8 / 255
  if eps is None:
    raise UserError(
      f'norm={norm!r} has no usual radius for images of all sizes; give eps, '
      'such as 0.5 in L2 or 12.0 in L1'
    )
  number = isinstance(eps, numbers.Real) and not isinstance(eps, bool)
  if not number and getattr(eps, 'shape', None) == ():
    number = np.asarray(eps).dtype.kind in 'fiu'
  if not number:
    raise UserError(
      f'eps={eps!r} is no number; give one radius such as 8 / 255, and call '
      'again for another one'
    )
  eps = float(eps)
  radius('eps', eps, name)
  return name, eps


def folder(value: Any) -> pathlib.Path:
  """Where unfinished work is kept, on this machine.

  Raises:
    UserError: it is no path, or the address of a bucket.
  """
  if not isinstance(value, str | os.PathLike):
    raise UserError(f'folder={value!r} is no path; give one, such as "attack"')
  return pathlib.Path(local_path(value, 'folder'))


def whole(least: int, most: float = math.inf, /, **values: Any) -> None:
  """Refuses what is no whole number, or not from `least` to `most`.

  Raises:
    UserError: names the argument and its value.
  """
  for name, value in values.items():
    integer = isinstance(value, numbers.Integral) and not isinstance(
      value, bool
    )
    if not integer or not least <= value <= most:
      end = f'{least} or more' if most == math.inf else f'{least} to {most}'
      raise UserError(f'{name}={value!r} must be a whole number, {end}')
