"""Blurs, zooms and textures of which common corruptions are made.

Images are floats of shape (height, width, channels).
"""

import functools
import math
import pathlib

import cv2
import numpy as np
from jaxtyping import Float

from vmoe_robust.config import UserError
from vmoe_robust.files import local_path

Values = Float[np.ndarray, 'height width *channels']
# The authors draw one of the first five of their six photographs, shrunk for
# CIFAR-10-C.
_PHOTOGRAPHS = 5
_SHRINK = 0.2
# What their photographs have in the mean: grey, its spread over a crop, and
# each channel's share of the grey.
_GREY, _SPREAD, _TINT = 157, 23, (0.91, 1.02, 1.07)


def blur(
  x: Values,
  sigma: float,
  border: int = cv2.BORDER_REPLICATE,
  truncate: float = 4,
) -> Values:
  """A Gaussian blur of a kernel that ends at `truncate` * `sigma`."""
  reach = int(truncate * sigma + 0.5)
  if not reach:
    return x
  size = 2 * reach + 1
  blurred = cv2.GaussianBlur(x, (size, size), sigma, borderType=border)
  return blurred.reshape(x.shape)


def zoom(x: Values, factor: float) -> Values:
  """The central part, enlarged to the old size by linear interpolation."""
  return _enlarge(_enlarge(x, factor).swapaxes(0, 1), factor).swapaxes(0, 1)


def _enlarge(x, factor):
  size = len(x)
  part = math.ceil(size / factor)
  new = round(part * factor)  # of which the middle is kept
  places = np.arange(size) + (new - size) // 2
  places = places * ((part - 1) / max(new - 1, 1))
  low = places.astype(int)
  share = (places - low).astype(x.dtype)[:, None, None]
  first = (size - part) // 2
  high = np.minimum(low + 1, part - 1)
  return x[first + low] * (1 - share) + x[first + high] * share


def motion(x: Values, radius: int, sigma: float, angle: float) -> Values:
  """Half a Gaussian along a line, as ImageMagick's motion blur.

  Args:
    x: the image; its edge goes on outside.
    radius: of the kernel, which has 2 * radius + 1 taps.
    sigma: of the Gaussian, in pixels.
    angle: of the line, in degrees, clockwise from the right.
  """
  taps = np.arange(2 * radius + 1)
  weights = np.exp(-(taps**2) / (2 * sigma**2))
  weights = (weights / weights.sum()).astype(x.dtype)
  way = np.deg2rad(angle)
  down = np.ceil(taps * np.sin(way) - 0.5).astype(int)
  right = np.ceil(taps * np.cos(way) - 0.5).astype(int)
  height, width = x.shape[:2]
  pad = 2 * radius
  padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
  out = np.zeros_like(x)
  for weight, i, j in zip(weights, down + pad, right + pad, strict=True):
    out += weight * padded[i : i + height, j : j + width]
  return out


def plasma(
  size: int, decay: float, rng: np.random.Generator
) -> Float[np.ndarray, 'side side']:
  """Clouds in [0, 1], of a side that is a power of two and `size` or more.

  The diamond-square algorithm: midpoints are the mean of four neighbours, of a
  plane that goes round, and a uniform deviation that shrinks with the distance.

  Args:
    size: the least side.
    decay: the root of the factor by which deviations shrink.
    rng: where all draws come from.
  """
  side = 1 << (size - 1).bit_length()
  clouds = np.zeros((side, side))
  step, most = side, 100.0**2

  def middle(*four):
    drawn = rng.uniform(-most, most, four[0].shape)
    return sum(four) / 4 + drawn

  while step >= 2:
    half = step // 2
    corners = clouds[::step, ::step]
    below, right = np.roll(corners, -1, 0), np.roll(corners, -1, 1)
    centres = middle(corners, below, right, np.roll(below, -1, 1))
    clouds[half::step, half::step] = centres
    above, left = np.roll(centres, 1, 0), np.roll(centres, 1, 1)
    clouds[::step, half::step] = middle(corners, right, centres, above)
    clouds[half::step, ::step] = middle(corners, below, centres, left)
    step, most = half, most / decay**2
  clouds -= clouds.min()
  return clouds / clouds.max()


def grey(
  x: Float[np.ndarray, 'height width channels'],
) -> Float[np.ndarray, 'height width 1']:
  """Luma of RGB; grey stays."""
  if x.shape[2] == 1:
    return x
  return x @ np.asarray([[0.299], [0.587], [0.114]], x.dtype)


def frost(
  height: int,
  width: int,
  small: bool,
  rng: np.random.Generator,
  directory: str,
) -> Float[np.ndarray, 'height width 3']:
  """A piece of frost in 0..255.

  Args:
    height: in pixels.
    width: in pixels.
    small: shrunk, as in CIFAR-10-C.
    rng: where all draws come from.
    directory: with the photographs of arXiv:1903.12261; '' draws crystals of
      the brightness, the spread and the tint of those.
  """
  if not directory:
    return _crystals(height, width, rng)
  photographs = load_frost(directory)
  image = photographs[rng.integers(len(photographs))]
  scale = _SHRINK if small else 1
  scale = max(
    scale, (height + 1) / image.shape[0], (width + 1) / image.shape[1]
  )
  if scale != 1:
    image = cv2.resize(image, (0, 0), fx=scale, fy=scale)
  top = rng.integers(image.shape[0] - height)
  left = rng.integers(image.shape[1] - width)
  return image[top : top + height, left : left + width].astype(np.float64)


def load_frost(directory: str) -> tuple[np.ndarray, ...]:
  """The authors' photographs, RGB.

  Raises:
    UserError: they are not there.
  """
  folder = local_path(directory, 'config.study.corruptions.frost_dir')
  return _photographs(folder.absolute())


@functools.cache
def _photographs(folder: pathlib.Path) -> tuple[np.ndarray, ...]:
  images = []
  for i in range(1, _PHOTOGRAPHS + 1):
    found = sorted(folder.glob(f'frost{i}.*'))
    image = cv2.imread(str(found[0])) if found else None
    if image is None:
      raise UserError(
        f"config.study.corruptions.frost_dir='{folder}' has no image "
        f'frost{i}.png or frost{i}.jpg; it needs those of ImageNet-C, or '
        'leave it empty, and frost is drawn'
      )
    images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
  return tuple(images)


def _crystals(height, width, rng):
  """Needles of several directions on ridged clouds."""
  size = max(height, width)
  clouds = plasma(size, 1.5, rng)[:height, :width, None]
  ice = 1 - np.abs(2 * clouds - 1)
  for _ in range(3):
    seeds = (rng.random((height, width, 1)) < 0.03).astype(float)
    length = max(size // 16, 2)
    needles = motion(seeds, length, length, rng.uniform(0, 360))
    ice += needles / max(needles.max(), 1e-9)
  ice = (ice - ice.mean()) / max(ice.std(), 1e-9)
  light = _GREY + rng.normal(0, 35) + _SPREAD * ice
  return np.clip(light * np.asarray(_TINT), 0, 255)
