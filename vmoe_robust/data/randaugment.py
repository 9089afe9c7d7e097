"""RandAugment (arXiv:1909.13719), the sixteen operations of its authors' code.

The levels are those of the TensorFlow code that AugReg (arXiv:2106.10270) and
big_vision use: a magnitude of 10 is the nominal full strength, and 15 or 20
go beyond it (rotation by 30, 45 and 60 degrees; a factor of 1.9, 2.8 and 3.7).
From 10 on Solarize, and from 20 on Posterize, leave the image as it is, there
as here. Lengths in pixels were made for 224-pixel images and follow the
image's size. One deliberate difference: Contrast blends with the image's mean
grey, as the paper's first (Pillow) code did; the TensorFlow code blends with
the number of pixels divided by 256.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

_NOMINAL = 10  # the magnitude of nominal full strength
_SIDE = 224  # for which the lengths below are meant
_TRANSLATE = 100
_CUTOUT = 40
_GREY = 128  # fills what an operation uncovers

OPERATIONS = (
  'AutoContrast',
  'Equalize',
  'Invert',
  'Rotate',
  'Posterize',
  'Solarize',
  'Color',
  'Contrast',
  'Brightness',
  'Sharpness',
  'ShearX',
  'ShearY',
  'TranslateX',
  'TranslateY',
  'Cutout',
  'SolarizeAdd',
)


def randaugment(
  image: UInt8[np.ndarray, 'height width channels'],
  layers: int,
  magnitude: float,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'height width channels']:
  """Applies `layers` operations, each drawn uniformly, one after the other."""
  grey = image.shape[2] == 1
  picture = Image.fromarray(
    np.ascontiguousarray(image[:, :, 0] if grey else image)
  )
  for _ in range(layers):
    name = OPERATIONS[rng.integers(len(OPERATIONS))]
    picture = apply(picture, name, magnitude, rng)
  return np.asarray(picture).reshape(image.shape)


def apply(
  picture: Image.Image, name: str, magnitude: float, rng: np.random.Generator
) -> Image.Image:
  """One operation of `OPERATIONS` at a magnitude; directions are random."""
  level = magnitude / _NOMINAL
  match name:
    case 'AutoContrast':
      return ImageOps.autocontrast(picture)
    case 'Equalize':
      return ImageOps.equalize(picture)
    case 'Invert':
      return ImageOps.invert(picture)
    case 'Posterize':
      cut = 8 - min(int(level * 4), 8)  # bits; Pillow's own refuses all 8
      return picture.point(lambda value: value >> cut << cut)
    case 'Solarize':
      return ImageOps.solarize(picture, int(level * 256))
    case 'SolarizeAdd':
      return _solarize_add(picture, int(level * 110))
    case 'Color' | 'Contrast' | 'Brightness' | 'Sharpness':
      enhance = getattr(ImageEnhance, name)
      return enhance(picture).enhance(0.1 + 1.8 * level)
    case 'Cutout':
      return _cutout(picture, level, rng)
    case _:
      return _move(picture, name, level, rng)


def _move(picture, name, level, rng) -> Image.Image:
  fill = _GREY if picture.mode == 'L' else (_GREY,) * 3
  sign = rng.choice((-1, 1))
  if name == 'Rotate':
    return picture.rotate(sign * level * 30, fillcolor=fill)
  width, height = picture.size
  shear = sign * level * 0.3
  shift = sign * level * _TRANSLATE / _SIDE
  # Output pixel (x, y) comes from (a x + b y + c, d x + e y + f).
  matrix = {
    'ShearX': (1, shear, 0, 0, 1, 0),
    'ShearY': (1, 0, 0, shear, 1, 0),
    'TranslateX': (1, 0, shift * width, 0, 1, 0),
    'TranslateY': (1, 0, 0, 0, 1, shift * height),
  }[name]
  return picture.transform(
    picture.size, Image.Transform.AFFINE, matrix, fillcolor=fill
  )


def _solarize_add(picture: Image.Image, addition: int) -> Image.Image:
  table = [min(v + addition, 255) if v < 128 else v for v in range(256)]
  return picture.point(table * len(picture.getbands()))


def _cutout(picture, level, rng) -> Image.Image:
  image = np.array(picture)
  height, width = image.shape[:2]
  half_height = int(level * _CUTOUT * height / _SIDE)
  half_width = int(level * _CUTOUT * width / _SIDE)
  y, x = rng.integers(height), rng.integers(width)
  rows = slice(max(y - half_height, 0), y + half_height)
  columns = slice(max(x - half_width, 0), x + half_width)
  image[rows, columns] = _GREY
  return Image.fromarray(image)
