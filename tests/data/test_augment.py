import numpy as np
import pytest

from vmoe_robust.data import augment


def gradient(height: int, width: int, channels: int = 3) -> np.ndarray:
  y = np.linspace(0, 255, height)[:, None, None]
  return np.broadcast_to(y, (height, width, channels)).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


@pytest.mark.parametrize('shape', [(40, 60, 3), (61, 37, 3), (8, 8, 1)])
def test_evaluation_takes_the_centre(make_data, shape):
  data = make_data(image_size=16, resize=20)
  image = augment.evaluation_image(gradient(*shape), data)
  assert image.shape == (16, 16, shape[2]) and image.dtype == np.uint8
  assert abs(float(image.mean()) - 127.5) < 5  # half a row or so


def test_evaluation_margin(make_data):
  image = np.full((40, 40, 3), 255, np.uint8)
  image[5:-5, 5:-5] = 0  # a frame of one eighth
  kept = augment.evaluation_image(image, make_data(image_size=20, resize=0))
  cut = augment.evaluation_image(image, make_data(image_size=20, resize=40))
  assert kept.max() == 255 and cut.max() == 0


def test_the_far_ends_of_a_thin_image_cost_nothing(make_data, monkeypatch):
  thin = np.tile(np.arange(2000) % 256, (2, 1)).astype(np.uint8)[..., None]
  sizes, resize = [], augment.resize

  def spy(image, height, width):
    sizes.append(height * width)
    return resize(image, height, width)

  monkeypatch.setattr(augment, 'resize', spy)
  for image in (thin, thin.transpose(1, 0, 2)):
    found = augment.evaluation_image(image, make_data(image_size=64))
    assert found.shape == (64, 64, 1)
    # The middle of the whole image, the pixels 999 and 1,000.
    assert abs(float(found.mean()) - 999.5 % 256) < 1
  assert sizes == [64 * 256, 256 * 64]  # the whole would be 64 x 64,000
  wide = np.random.default_rng(0).integers(0, 256, (9, 36, 3), np.uint8)
  data = make_data(image_size=9)
  np.testing.assert_array_equal(
    augment.evaluation_image(wide, data), wide[:, 13:22]
  )


def test_evaluation_never_rounds_below_the_crop(make_data):
  for side in range(17, 60):
    image = augment.evaluation_image(
      gradient(side, side * 2), make_data(image_size=23)
    )
    assert image.shape == (23, 23, 3)


def test_images_of_the_right_size_are_untouched(make_data):
  image = gradient(8, 8)
  assert np.array_equal(
    augment.training_image(image, make_data(), rng()), image
  )


def test_inception_boxes_are_inside_and_legal():
  areas = []
  for seed in range(300):
    top, left, h, w = augment.inception_box(375, 500, 0.05, rng(seed))
    assert 0 <= top <= 375 - h and 0 <= left <= 500 - w
    assert 0.72 < w / h < 1.39
    areas.append(h * w / (375 * 500))
  assert min(areas) > 0.04
  assert 0.4 < np.mean(areas) < 0.6


@pytest.mark.parametrize('shape', [(10, 1000), (1000, 10)])
def test_inception_boxes_of_long_images_fall_back_to_the_centre(shape):
  boxes = {augment.inception_box(*shape, 0.9, rng(i)) for i in range(9)}
  assert len(boxes) == 1
  top, left, h, w = boxes.pop()
  assert min(h, w) == 10 and max(h, w) == 13
  assert max(top, left) == (1000 - 13) // 2


def test_inception_crop_resizes(make_data):
  data = make_data(image_size=24, crop='inception', flip=True)
  images = [
    augment.training_image(gradient(50, 70), data, rng(i)) for i in range(9)
  ]
  assert {image.shape for image in images} == {(24, 24, 3)}
  assert len({image.tobytes() for image in images}) == 9


def test_pad_crop_shifts_by_at_most_the_padding(make_data):
  data = make_data(image_size=8, crop='pad', pad=2)
  image = np.zeros((8, 8, 1), np.uint8)
  image[4, 4] = 255
  places = set()
  for i in range(200):
    moved = augment.training_image(image, data, rng(i))
    places.add(tuple(int(p[0]) for p in np.nonzero(moved)[:2]))
  assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_half_the_images_are_mirrored(make_data):
  image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
  data = make_data(flip=True)
  mirrored = [
    not np.array_equal(augment.training_image(image, data, rng(i)), image)
    for i in range(400)
  ]
  assert 160 < sum(mirrored) < 240


def test_draws_come_from_the_generator_alone(make_data):
  data = make_data(
    image_size=24, crop='inception', flip=True, randaugment_layers=2
  )
  image = gradient(50, 70)
  a = augment.training_image(image, data, rng(3))
  assert np.array_equal(a, augment.training_image(image, data, rng(3)))
