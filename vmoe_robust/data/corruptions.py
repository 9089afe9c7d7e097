"""The 15 common corruptions of ImageNet-C and CIFAR-10-C, at 5 severities.

Dan Hendrycks and Thomas Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (arXiv:1903.12261). Strengths are those of
the code that made the published images: ImageNet-C's, and CIFAR-10-C's for
images of at most 64 pixels. Lengths are in pixels as there, for 224 and 32;
those of the elastic transform follow the image's size.

As there, a corruption takes the 8-bit image that the model would see, and the
result is cut to 8 bits, not rounded. Glass blur takes a neighbour's pixel
without giving its own, as the published images do. Grey images are corrupted as
grey. Frost needs photographs that cannot be shipped; see `textures.frost`.
"""

import dataclasses
import functools
import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from vmoe_robust.config import CORRUPTIONS
from vmoe_robust.data import textures

Pixels = UInt8[np.ndarray, 'height width channels']

SMALL = 64  # up to this size CIFAR-10-C's strengths hold
CLEAN = 'clean'

_IMAGENET: dict[str, tuple] = dict(
  gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
  shot_noise=(60, 25, 12, 5, 3),
  impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
  # Radius of the disc, and of its soft edge.
  defocus_blur=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
  # Sigma of the blur, farthest neighbour, rounds.
  glass_blur=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
  motion_blur=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
  # Largest zoom (beyond the last), step.
  zoom_blur=(
    (1.11, 0.01),
    (1.16, 0.01),
    (1.21, 0.02),
    (1.26, 0.02),
    (1.31, 0.03),
  ),
  # Mean, sigma, zoom and threshold of the flakes; their motion; the image's
  # share, of which the rest is whitened.
  snow=(
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
  ),
  frost=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
  fog=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # depth, decay
  brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
  contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
  # Displacement, its sigma, shift of the affine map's corners; of the size.
  # The published code has 244 for 224.
  elastic_transform=tuple(
    tuple(244 / 224 * x for x in row)
    for row in (
      *((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02)),
      *((0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    )
  ),
  pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
  jpeg_compression=(25, 18, 15, 10, 7),
)
_CIFAR: dict[str, tuple] = dict(
  gaussian_noise=(0.04, 0.06, 0.08, 0.09, 0.10),
  shot_noise=(500, 250, 100, 75, 50),
  impulse_noise=(0.01, 0.02, 0.03, 0.05, 0.07),
  defocus_blur=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
  glass_blur=(
    (0.05, 1, 1),
    (0.25, 1, 1),
    (0.4, 1, 1),
    (0.25, 1, 2),
    (0.4, 1, 2),
  ),
  motion_blur=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
  zoom_blur=tuple((last, 0.01) for last in (1.06, 1.11, 1.16, 1.21, 1.26)),
  snow=(
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
  ),
  frost=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
  fog=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
  brightness=(0.05, 0.1, 0.15, 0.2, 0.3),
  contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
  elastic_transform=(
    *((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06)),
    *((0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
  ),
  pixelate=(0.95, 0.9, 0.85, 0.75, 0.65),
  jpeg_compression=(80, 65, 58, 50, 40),
)


@dataclasses.dataclass(frozen=True)
class Corruption:
  """One corruption at one severity; picklable, for worker processes."""

  name: str = CLEAN  # one of CORRUPTIONS, or CLEAN, which changes nothing
  severity: int = 0  # 1 to 5
  seed: int = 0
  frost_dir: str = ''

  def __call__(self, image: Pixels, index: int) -> Pixels:
    """The image corrupted; draws follow (seed, index, name, severity) alone."""
    if self.name == CLEAN:
      return image
    number = CORRUPTIONS.index(self.name)
    rng = np.random.default_rng(
      (self.seed % 2**32, index, number, self.severity)
    )
    return corrupt(image, self.name, self.severity, rng, self.frost_dir)


def corrupt(
  image: Pixels,
  name: str,
  severity: int,
  rng: np.random.Generator,
  frost_dir: str = '',
) -> Pixels:
  """An image of 8 x 8 pixels or more, corrupted.

  Args:
    image: what the model would see.
    name: one of `config.CORRUPTIONS`.
    severity: 1 to 5.
    rng: where all draws come from.
    frost_dir: see `textures.frost`.
  """
  small = max(image.shape[:2]) <= SMALL
  strength = (_CIFAR if small else _IMAGENET)[name][severity - 1]
  if name == 'pixelate':
    return _pixelate(image, strength)
  if name == 'jpeg_compression':
    return _jpeg(image, strength)
  if name == 'frost':
    share, ice = strength
    out = _frost(image, share, ice, small, rng, frost_dir) / 255
  else:
    out = _FUNCTIONS[name](image / 255, strength, rng)
  return (np.clip(out, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(x, sigma, rng):
  return x + rng.normal(scale=sigma, size=x.shape)


def _shot_noise(x, photons, rng):
  return rng.poisson(x * photons) / photons


def _impulse_noise(x, share, rng):
  hit, salt = rng.random(x.shape) <= share, rng.random(x.shape) <= 0.5
  return np.where(hit, salt, x)


def _defocus_blur(x, strength, rng):
  return _filter(x, _disc(*strength))


@functools.cache
def _disc(radius: float, edge: float) -> np.ndarray:
  reach, size = (8, 3) if radius <= 8 else (radius, 5)
  steps = np.arange(-reach, reach + 1)
  inside = steps[:, None] ** 2 + steps**2 <= radius**2
  disc = (inside / inside.sum()).astype(np.float32)
  return cv2.GaussianBlur(disc, (size, size), sigmaX=edge)


def _glass_blur(x, strength, rng):
  sigma, reach, rounds = strength
  blurred = textures.blur(x, sigma)
  x = (np.clip(blurred, 0, 1) * 255).astype(np.uint8) / 255
  for _ in range(rounds):
    x = _take_neighbours(x, reach, rng)
  return textures.blur(x, sigma)


def _take_neighbours(x, reach, rng):
  """Each pixel, from the last to the first, takes one nearby.

  A neighbour behind it has already taken another's, which is followed to the
  pixel that it started from.
  """
  height, width = x.shape[:2]
  rows, columns = np.mgrid[:height, :width]
  inside = lambda n, size: (n > reach) & (n <= size - reach)
  moves = inside(rows, height) & inside(columns, width)
  shift = rng.integers(-reach, reach, (2, height, width)) * moves
  here = np.arange(height * width)
  taken = ((rows + shift[0]) * width + columns + shift[1]).reshape(-1)
  last = np.where(taken > here, taken, here)
  while (further := last[last]).tolist() != last.tolist():
    last = further
  return x.reshape(-1, x.shape[2])[taken[last]].reshape(x.shape)


def _motion_blur(x, strength, rng):
  radius, sigma = strength
  blurred = textures.motion(x, radius, sigma, rng.uniform(-45, 45))
  return (blurred * 255).round() / 255  # as ImageMagick does


def _zoom_blur(x, strength, rng):
  zooms = np.arange(1, *strength)
  layers = [textures.zoom(x.astype(np.float32), zoom) for zoom in zooms]
  return (x + sum(layers)) / (len(zooms) + 1)


def _snow(x, strength, rng):
  mean, sigma, zoom, threshold, radius, blur, share = strength
  flakes = rng.normal(mean, sigma, (*x.shape[:2], 1))
  flakes = textures.zoom(flakes, zoom)
  flakes[flakes < threshold] = 0
  flakes = textures.motion(
    np.clip(flakes, 0, 1), radius, blur, rng.uniform(-135, -45)
  )
  flakes = (flakes * 255).round() / 255
  white = np.maximum(x, textures.grey(x) * 1.5 + 0.5)
  return share * x + (1 - share) * white + flakes + flakes[::-1, ::-1]


def _frost(image, share, ice, small, rng, frost_dir):
  height, width, channels = image.shape
  found = textures.frost(height, width, small, rng, frost_dir)
  if channels == 1:
    found = textures.grey(found)
  return share * image + ice * found


def _fog(x, strength, rng):
  depth, decay = strength
  height, width = x.shape[:2]
  fog = textures.plasma(max(height, width), decay, rng)[:height, :width, None]
  return (x + depth * fog) * x.max() / (x.max() + depth)


def _brightness(x, more, rng):
  """The value of HSV, raised: all channels by one factor, of black none."""
  value = x.max(2, keepdims=True)
  raised = np.minimum(value + more, 1)
  return np.where(value > 0, x / np.maximum(value, 1e-9), 1) * raised


def _contrast(x, share, rng):
  mean = x.mean((0, 1), keepdims=True)
  return (x - mean) * share + mean


def _elastic_transform(x, strength, rng):
  height, width = x.shape[:2]
  size = max(height, width)
  reach, sigma, corner = (size * s for s in strength)
  centre = np.array((height, width), np.float32) // 2
  side = min(height, width) // 3
  triangle = np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
  corners = centre + side * triangle
  moved = corners + rng.uniform(-corner, corner, (3, 2)).astype(np.float32)
  x = cv2.warpAffine(
    x.astype(np.float32),
    cv2.getAffineTransform(corners, moved),
    (width, height),
    borderMode=cv2.BORDER_REFLECT_101,
  ).reshape(x.shape)
  shifts = [
    reach * textures.blur(d, sigma, cv2.BORDER_REFLECT, truncate=3)
    for d in rng.uniform(-1, 1, (2, height, width))
  ]
  places = np.mgrid[:height, :width] + np.stack(shifts)
  layers = [
    ndimage.map_coordinates(x[:, :, c], places, order=1, mode='reflect')
    for c in range(x.shape[2])
  ]
  return np.stack(layers, -1)


def _pixelate(image, share):
  height, width = image.shape[:2]
  less = (max(int(width * share), 1), max(int(height * share), 1))
  box = Image.Resampling.BOX
  picture = _picture(image).resize(less, box).resize((width, height), box)
  return np.asarray(picture).reshape(image.shape)


def _jpeg(image, quality):
  buffer = io.BytesIO()
  _picture(image).save(buffer, 'JPEG', quality=quality)
  return np.asarray(Image.open(buffer)).reshape(image.shape)


def _picture(image) -> Image.Image:
  grey = image.shape[2] == 1
  return Image.fromarray(
    np.ascontiguousarray(image[:, :, 0] if grey else image)
  )


def _filter(x, kernel):
  return cv2.filter2D(x, -1, kernel).reshape(x.shape)


_FUNCTIONS = dict(
  gaussian_noise=_gaussian_noise,
  shot_noise=_shot_noise,
  impulse_noise=_impulse_noise,
  defocus_blur=_defocus_blur,
  glass_blur=_glass_blur,
  motion_blur=_motion_blur,
  zoom_blur=_zoom_blur,
  snow=_snow,
  fog=_fog,
  brightness=_brightness,
  contrast=_contrast,
  elastic_transform=_elastic_transform,
)
