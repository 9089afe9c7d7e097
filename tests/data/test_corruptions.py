import pickle

import cv2
import numpy as np
import pytest

from vmoe_robust.config import CORRUPTIONS, UserError
from vmoe_robust.data import Corruption, corruptions, load_frost, textures

NOISES = CORRUPTIONS[:3]


def picture(size, channels=3):
  """Smooth, with edges, and neither black nor white throughout."""
  rows, columns = np.mgrid[:size, :size] / size
  waves = np.stack([rows, columns, np.sin(6 * rows) ** 2], -1)[..., :channels]
  waves[size // 4 : size // 2, size // 4 : size // 2] = 0.9
  return (waves * 255).astype(np.uint8)


def corrupted(name, severity, image, index=0, **more):
  return Corruption(name, severity, **more)(image, index)


@pytest.mark.parametrize('name', CORRUPTIONS)
@pytest.mark.parametrize(
  ('size', 'channels'), [(8, 1), (8, 3), (28, 1), (64, 3), (65, 1), (96, 3)]
)
def test_shape_and_type_stay(name, size, channels):
  image = picture(size, channels)
  before = image.copy()
  for severity in (1, 5):
    out = corrupted(name, severity, image)
    assert out.shape == image.shape and out.dtype == np.uint8
  assert (out != image).any()
  np.testing.assert_array_equal(image, before)
  corrupted(name, 3, np.zeros_like(image))
  corrupted(name, 3, np.full_like(image, 255))


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_draws_follow_seed_index_name_and_severity(name):
  image = picture(32)
  here = corrupted(name, 3, image, index=7, seed=1)
  again = pickle.loads(pickle.dumps(Corruption(name, 3, seed=1)))
  np.random.seed(3)  # from which nothing is drawn
  np.testing.assert_array_equal(again(image, 7), here)
  fixed = 'defocus_blur zoom_blur brightness contrast pixelate jpeg_compression'
  for other in (dict(index=8, seed=1), dict(index=7, seed=2)):
    differs = (corrupted(name, 3, image, **other) != here).any()
    assert differs == (name not in fixed.split())


@pytest.mark.parametrize('size', [32, 128])
@pytest.mark.parametrize('name', [*NOISES, 'contrast', 'brightness', 'fog'])
def test_severities_grow(name, size):
  image = picture(size)
  far = [
    np.abs(corrupted(name, s, image, i).astype(float) - image).mean()
    for s in (1, 3, 5)
    for i in range(4)
  ]
  means = np.mean(np.reshape(far, (3, 4)), axis=1)
  assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(
  ('size', 'expected'), [(64, (0.04, 0.1)), (128, (0.08, 0.38))]
)
def test_strengths_follow_the_size(size, expected):
  grey = np.full((size, size, 3), 128, np.uint8)
  for severity, sigma in zip((1, 5), expected, strict=True):
    out = corrupted('gaussian_noise', severity, grey) / 255
    clipped = np.clip(
      128 / 255 + sigma * np.random.default_rng(0).normal(size=9999), 0, 1
    )
    assert out.std() == pytest.approx(clipped.std(), rel=0.05)


def test_impulses_are_salt_and_pepper():
  out = corrupted('impulse_noise', 5, np.full((200, 200, 3), 100, np.uint8))
  assert set(np.unique(out)) == {0, 100, 255}
  assert (out == 255).mean() == pytest.approx(0.135, abs=0.01)
  assert (out == 0).mean() == pytest.approx(0.135, abs=0.01)


def test_glass_takes_neighbours_in_order():
  """As a loop from the last pixel to the first does, without giving back."""
  image = np.random.default_rng(0).random((12, 12, 3))
  found = corruptions._take_neighbours(image, 2, np.random.default_rng(5))
  shift = np.random.default_rng(5).integers(-2, 2, (2, 12, 12))
  expected = image.copy()
  for i in range(10, 2, -1):
    for j in range(10, 2, -1):
      expected[i, j] = expected[i + shift[0, i, j], j + shift[1, i, j]]
  np.testing.assert_array_equal(found, expected)


def test_brightness_raises_the_value_of_hsv():
  image = picture(32)
  image[0] = 0
  out = corrupted('brightness', 5, image)
  hsv = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2HSV)
  hsv[:, :, 2] = np.minimum(hsv[:, :, 2] + 0.3, 1)
  expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
  np.testing.assert_allclose(out, expected, atol=1.01)


def test_zoom_is_linear_interpolation_of_the_middle():
  ramp = np.repeat(np.arange(32.0)[:, None, None], 32, axis=1)
  out = textures.zoom(ramp, 2.0)
  np.testing.assert_allclose(out[:, 0, 0], np.linspace(8, 23, 32))
  np.testing.assert_allclose(textures.zoom(ramp, 1.0), ramp)


def test_motion_goes_one_way():
  dot = np.zeros((21, 21, 1))
  dot[10, 10] = 1
  out = textures.motion(dot, 4, 3.0, 0)
  assert out.sum() == pytest.approx(1)
  # Pixels to its left see the dot, as in ImageMagick.
  assert (out[10, 2:11] > 0).all() and out[10, 11:].sum() == 0
  np.testing.assert_allclose(out[10, 10, 0] / out[10, 7, 0], np.exp(0.5))


def test_plasma_is_clouds():
  rng = np.random.default_rng(0)
  clouds = textures.plasma(200, 3, rng)
  assert clouds.shape == (256, 256)
  assert clouds.min() == 0 and clouds.max() == 1
  rough = textures.plasma(200, 1.4, rng)
  slope = lambda x: np.abs(np.diff(x, axis=0)).mean() / x.std()
  assert slope(rough) > 3 * slope(clouds)


def test_frost_of_photographs(tmp_path, monkeypatch):
  for i in range(1, 6):
    image = np.full((60, 90, 3), (0, 0, 40 * i), np.uint8)  # red, as BGR
    cv2.imwrite(str(tmp_path / f'frost{i}.png'), image)
  black = np.zeros((96, 96, 3), np.uint8)  # larger than the photographs
  seen = set()
  for i in range(30):
    out = corrupted('frost', 1, black, i, frost_dir=str(tmp_path))
    assert out.max() > 0 and not out[..., 1:].any()
    seen.add(int(out.max()))
  assert seen == {16, 32, 48, 64, 80}  # 0.4 of each
  monkeypatch.setenv('HOME', str(tmp_path.parent))
  assert len(load_frost(f'~/{tmp_path.name}')) == 5
  for brightness in (10, 200):  # of one name in two folders
    folder = tmp_path / str(brightness) / 'frost'
    folder.mkdir(parents=True)
    for i in range(1, 6):
      image = np.full((4, 4, 3), brightness, np.uint8)
      assert cv2.imwrite(str(folder / f'frost{i}.png'), image)
    monkeypatch.chdir(folder.parent)
    assert {int(image.max()) for image in load_frost('frost')} == {brightness}
  (tmp_path / 'frost4.png').unlink()
  textures._photographs.cache_clear()
  with pytest.raises(UserError, match=r'frost_dir=.* frost4\.png'):
    corrupted('frost', 1, black, frost_dir=str(tmp_path))


def test_drawn_frost_is_as_bright_as_the_photographs():
  """157 in the mean, with a spread of 23, bluish; measured on theirs."""
  draw = lambda i: textures.frost(64, 64, False, np.random.default_rng(i), '')
  found = np.stack([draw(i) for i in range(40)])
  assert found.mean() == pytest.approx(157, abs=15)
  assert found.std((1, 2)).mean() == pytest.approx(23, abs=5)
  red, _, blue = found.mean((0, 1, 2))
  assert red < blue
