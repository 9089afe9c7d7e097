"""Crops, flips and resizes: uint8 pixels in, uint8 pixels out.

Every draw comes from the generator that is passed in, so what an image
becomes is a function of (seed, epoch, index) and nothing else.
"""

import math

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vmoe_robust.data import randaugment

Image = UInt8[np.ndarray, 'height width channels']
Crop = UInt8[np.ndarray, 'size size channels']
Resized = UInt8[np.ndarray, 'new_height new_width channels']

_CROP_ATTEMPTS = 10
_LOG_ASPECT = math.log(4 / 3)


def evaluation_image(image: Image, data: ConfigDict) -> Crop:
  """The shorter side to `data.resize`, then the central `data.image_size`."""
  size = data.image_size
  image = _middle(image)
  height, width = image.shape[:2]
  scale = (data.resize or size) / min(height, width)
  # Rounding must not take the shorter side below the crop.
  new = [max(round(side * scale), size) for side in (height, width)]
  image = resize(image, new[0], new[1])
  top, left = (new[0] - size) // 2, (new[1] - size) // 2
  return image[top : top + size, left : left + size]


def _middle(
  image: Image,
) -> UInt8[np.ndarray, 'middle_height middle_width channels']:
  """A thin image without its far ends, which would be resized for nothing.

  What is four times as long as wide is cut to that. At 2 x 20,000 pixels the
  whole would become 256 x 2,560,000.
  """
  height, width = image.shape[:2]
  most = 4 * min(height, width)
  top, left = max(height - most, 0) // 2, max(width - most, 0) // 2
  return image[top : top + most, left : left + most]


def training_image(
  image: Image, data: ConfigDict, rng: np.random.Generator
) -> Crop:
  """Crops as `data.crop` says, mirrors half, then applies RandAugment."""
  if data.crop == 'inception':
    image = inception_crop(image, data.image_size, data.crop_min_area, rng)
  else:
    image = evaluation_image(image, data)
  if data.crop == 'pad':
    image = pad_crop(image, data.pad, rng)
  if data.flip and rng.random() < 0.5:
    image = image[:, ::-1]
  if data.randaugment_layers:
    image = randaugment.randaugment(
      image, data.randaugment_layers, data.randaugment_magnitude, rng
    )
  return image


def inception_crop(
  image: Image, size: int, min_area: float, rng: np.random.Generator
) -> Crop:
  """A random part of the image, resized to `size` x `size`."""
  rows, columns = image.shape[:2]
  top, left, height, width = inception_box(rows, columns, min_area, rng)
  part = image[top : top + height, left : left + width]
  # Bilinear costs a quarter of the area average, whose smoothing only
  # matters when the image shrinks to less than half.
  return resize(part, size, size, least=2)


def inception_box(
  height: int, width: int, min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Top, left, height and width of a random part of an image, in pixels.

  Area uniform in [min_area, 1] of the image's, aspect ratio log-uniform in
  [3/4, 4/3] (arXiv:1409.4842, section 6); the largest central part of a legal
  aspect when none of ten draws fits.
  """
  for _ in range(_CROP_ATTEMPTS):
    area = rng.uniform(min_area, 1) * height * width
    aspect = math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
    h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(height - h + 1))
      left = int(rng.integers(width - w + 1))
      return top, left, h, w
  h = min(height, max(round(width * 4 / 3), 1))
  w = min(width, max(round(height * 4 / 3), 1))
  return (height - h) // 2, (width - w) // 2, h, w


def pad_crop(image: Image, pad: int, rng: np.random.Generator) -> Image:
  """Adds `pad` black pixels on each side and crops the old size at random."""
  height, width = image.shape[:2]
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  top, left = rng.integers(2 * pad + 1, size=2)
  return padded[top : top + height, left : left + width]


def resize(image: Image, height: int, width: int, least: int = 1) -> Resized:
  """Area average when both sides shrink `least`-fold, otherwise bilinear."""
  old_height, old_width = image.shape[:2]
  if (old_height, old_width) == (height, width):
    return image
  shrinks = old_height >= least * height and old_width >= least * width
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  resized = cv2.resize(image, (width, height), interpolation=method)
  return resized.reshape(height, width, image.shape[2])
