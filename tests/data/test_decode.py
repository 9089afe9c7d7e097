import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vmoe_robust.data.decode import CorruptImage, decode_image

PIXELS = cv2.resize(
  np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8),
  (60, 40),
  interpolation=cv2.INTER_CUBIC,
)


def encode(form: str, mode: str = 'RGB', exif: Image.Exif | None = None):
  buffer = io.BytesIO()
  picture = Image.fromarray(PIXELS).convert(mode)
  if exif:
    picture.save(buffer, form, exif=exif)
  else:
    picture.save(buffer, form)
  return buffer.getvalue()


def difference(image: np.ndarray) -> float:
  return np.abs(image.astype(float) - PIXELS).mean()


@pytest.mark.parametrize(
  ('form', 'mode', 'tolerance'),
  [
    ('PNG', 'RGB', 0),
    ('BMP', 'RGB', 0),
    ('PNG', 'RGBA', 0),
    ('JPEG', 'RGB', 4),
    ('WEBP', 'RGB', 4),
    ('JPEG', 'CMYK', 4),
  ],
)
def test_formats_decode_to_rgb(form, mode, tolerance):
  image = decode_image(encode(form, mode), 3)
  assert image.shape == (40, 60, 3)
  assert difference(image) <= tolerance


@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_grey_and_colour_are_converted(form):
  grey = decode_image(encode(form), 1)
  assert grey.shape == (40, 60, 1)
  same = decode_image(encode(form, 'L'), 3)
  assert np.ptp(same.astype(int), axis=2).max() == 0
  assert np.abs(grey.astype(int) - same[:, :, :1]).mean() < 2


def test_orientation_is_ignored_as_tensorflow_ignores_it():
  exif = Image.Exif()
  exif[0x0112] = 6
  assert decode_image(encode('JPEG', exif=exif), 3).shape == (40, 60, 3)
  assert decode_image(encode('PNG', exif=exif), 3).shape == (40, 60, 3)


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'BMP'])
@pytest.mark.parametrize('keep', [0.0, 0.05, 0.5, 0.95])
def test_truncated_images_are_corrupt(form, keep):
  whole = encode(form)
  with pytest.raises(CorruptImage):
    decode_image(whole[: int(len(whole) * keep)], 3)


def test_garbage_is_corrupt():
  with pytest.raises(CorruptImage):
    decode_image(b'\xff\xd8' + bytes(range(256)), 3)
  with pytest.raises(CorruptImage):
    decode_image(b'not an image', 3)


def test_pixels_pass_through():
  assert decode_image(PIXELS, 3) is PIXELS
  assert decode_image(PIXELS[:, :, :1], 3).shape == (40, 60, 3)
  assert decode_image(PIXELS, 1).shape == (40, 60, 1)


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP'])
def test_damage_is_told_by_the_error_alone(form, capfd):
  """No library prints besides, straight to the terminal."""
  whole, rng = encode(form), np.random.default_rng(0)
  cuts = [whole[:n] for n in np.linspace(9, len(whole) - 1, 20).astype(int)]
  flipped = []
  for place in rng.integers(len(whole) // 3, len(whole), 20):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << rng.integers(8)
    flipped.append(bytes(damaged))
  told = 0
  for image in (*cuts, *flipped):
    try:
      decode_image(image, 3)
    except CorruptImage as error:
      told += 1
      assert str(error) and '\n' not in str(error)
  assert told >= (40 if form == 'PNG' else 10)
  assert capfd.readouterr() == ('', '')


def test_what_follows_a_png_does_no_harm():
  image = decode_image(encode('PNG') + b'more', 3)
  np.testing.assert_array_equal(image, PIXELS)


def test_a_rare_subsampling_is_decoded():
  """4:4:1, made of 4:1:1 by turning its only unit of 32 x 8 pixels."""
  grey = np.full((8, 32, 3), 77, np.uint8)
  data = bytearray(simplejpeg.encode_jpeg(grey, colorsubsampling='411'))
  frame = data.index(b'\xff\xc0')
  data[frame + 5 : frame + 9] = bytes([0, 32, 0, 8])  # height and width
  assert data[frame + 11] == 0x41
  data[frame + 11] = 0x14
  image = decode_image(bytes(data), 3)
  assert image.shape == (32, 8, 3)
  assert np.abs(image.astype(int) - 77).max() <= 2


@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_deflate'])
@pytest.mark.parametrize('big', [False, True])
def test_the_alpha_of_another_program_s_tiff_is_left_out(compression, big):
  pixels = np.zeros((6, 5, 4), np.uint8) + np.uint8([10, 100, 200, 128])
  buffer = io.BytesIO()
  how = dict(compression=compression, big_tiff=big)
  Image.fromarray(pixels).save(buffer, 'TIFF', **how)
  found = decode_image(buffer.getvalue(), 3)
  np.testing.assert_array_equal(found, pixels[:, :, :3])
  grey = decode_image(buffer.getvalue(), 1)
  assert grey.shape == (6, 5, 1) and (grey == 84).all()  # .299 R + .587 G + ...


def test_the_alpha_of_a_tiff_is_left_out():
  pixels = np.full((4, 5, 4), 200, np.uint8)
  pixels[..., 3] = 0
  _, encoded = cv2.imencode('.tiff', pixels)
  for channels in (1, 3):
    found = decode_image(encoded.tobytes(), channels)
    assert found.shape == (4, 5, channels) and (found == 200).all()


@pytest.mark.parametrize('compression', ['tiff_adobe_deflate', 'tiff_lzw'])
@pytest.mark.parametrize('big', [False, True])
def test_a_tiff_is_whole_or_corrupt(compression, big):
  """OpenCV returns what it could read of a strip, and calls it an image."""
  buffer = io.BytesIO()
  how = dict(compression=compression, big_tiff=big)
  Image.fromarray(PIXELS).save(buffer, 'TIFF', **how)
  whole, told = buffer.getvalue(), 0
  np.testing.assert_array_equal(decode_image(whole, 3), PIXELS)
  for place in range(20, len(whole) // 2, 97):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    try:
      Image.open(io.BytesIO(bytes(damaged))).load()
    except OSError:
      told += 1
      with pytest.raises(CorruptImage):
        decode_image(bytes(damaged), 3)
  assert told > 3
