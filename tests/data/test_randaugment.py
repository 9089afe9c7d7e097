import numpy as np
import pytest
from PIL import Image

from vmoe_robust.data import randaugment

PIXELS = np.random.default_rng(0).integers(30, 200, (56, 56, 3), dtype=np.uint8)


def apply(name: str, magnitude: float, pixels=PIXELS, seed=0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  picture = Image.fromarray(pixels)
  return np.asarray(randaugment.apply(picture, name, magnitude, rng))


@pytest.mark.parametrize('name', randaugment.OPERATIONS)
@pytest.mark.parametrize('magnitude', [0, 10, 30])
def test_every_operation_works_on_colour_and_grey(name, magnitude):
  for pixels in (PIXELS, PIXELS[:, :, 0]):
    image = apply(name, magnitude, pixels)
    assert image.shape == pixels.shape and image.dtype == np.uint8


def test_there_are_the_papers_operations():
  assert len(set(randaugment.OPERATIONS)) == 16


# The levels of the TensorFlow code: see the module's docstring.
def test_solarize():
  expected = np.where(PIXELS < 128, PIXELS, 255 - PIXELS)
  assert np.array_equal(apply('Solarize', 5), expected)
  assert np.array_equal(apply('Solarize', 10), PIXELS)


def test_solarize_add():
  added = np.minimum(PIXELS.astype(int) + 110, 255)
  expected = np.where(PIXELS < 128, added, PIXELS)
  assert np.array_equal(apply('SolarizeAdd', 10), expected)


def test_posterize():
  assert np.array_equal(apply('Posterize', 10), PIXELS & 0xF0)
  assert np.array_equal(apply('Posterize', 5), PIXELS & 0xC0)
  assert np.array_equal(apply('Posterize', 25), PIXELS)


def test_invert_and_brightness():
  assert np.array_equal(apply('Invert', 10), 255 - PIXELS)
  bright = np.clip(PIXELS * 1.9, 0, 255)
  assert np.abs(apply('Brightness', 10) - bright).max() <= 1


def test_enhancing_is_neutral_at_five():
  for name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
    assert np.array_equal(apply(name, 5), PIXELS)


def test_sharpness_blends_with_the_papers_kernel():
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  smooth = sum(
    kernel[y, x] * PIXELS[y : y + 54, x : x + 54]
    for y in range(3)
    for x in range(3)
  )
  inner = PIXELS[1:-1, 1:-1]
  expected = np.clip(smooth + 1.9 * (inner - smooth), 0, 255)
  assert np.abs(apply('Sharpness', 10)[1:-1, 1:-1] - expected).max() <= 2


def test_lengths_follow_the_image():
  for name, axis in (('TranslateX', 1), ('TranslateY', 0)):
    image = apply(name, 10)  # 100 pixels of 224 are 25 of 56
    grey = (image == 128).all(axis=(2, 1 - axis))
    assert grey.sum() == 25
  sizes = [
    (apply('Cutout', 10, seed=s) != PIXELS).any(2).sum() for s in range(9)
  ]
  assert max(sizes) <= 20 * 20 and max(sizes) > 10 * 10


def test_directions_are_random():
  images = {apply('Rotate', 10, seed=s).tobytes() for s in range(20)}
  assert len(images) == 2


def test_layers_draw_all_operations():
  rng = np.random.default_rng(0)
  images = {
    randaugment.randaugment(PIXELS, 1, 15, rng).tobytes() for _ in range(300)
  }
  assert len(images) > 16
