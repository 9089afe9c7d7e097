"""Encoded image bytes to uint8 pixels, fast enough to feed accelerators."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

# Images are decoded by many threads at once; OpenCV's own pool would fight
# them for the cores.
cv2.setNumThreads(0)

# Images that do not decode are named by whoever asked for them.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings('ignore', module=r'PIL\.TiffImagePlugin')

_JPEG_START = b'\xff\xd8'
_PNG_START = b'\x89PNG\r\n\x1a\n'
_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


class CorruptImage(ValueError):
  """The bytes of an image do not decode to all of its pixels."""


def decode_image(
  image: bytes | np.ndarray, channels: int
) -> UInt8[np.ndarray, 'height width channels']:
  """Pixels in 0..255 of an encoded image (or of pixels, which pass through).

  The EXIF orientation is ignored, as TensorFlow ignores it, so that labels
  and boxes made there stay true; a TIFF's own is followed. Samples of 16 bits
  are scaled as the standards of PNG and TIFF say, in which white is 65535: data
  of 12 bits in such files come out nearly black.

  Args:
    image: JPEG, PNG, WebP, BMP or TIFF bytes, or uint8 pixels.
    channels: 3 for RGB or 1 for grey; the image is converted.

  Raises:
    CorruptImage: the bytes are truncated, damaged or of no known format.
      Whatever makes libjpeg complain counts, for it leaves grey areas behind.
  """
  if isinstance(image, np.ndarray):
    return _with_channels(image, channels)
  if not image:
    raise CorruptImage('no bytes')
  if image[:2] == _JPEG_START:
    return _decode_jpeg(image, channels)
  if image.startswith(_PNG_START):
    _check_png(image)
  if image.startswith(_TIFF_STARTS):
    _check_tiff(image)
  return _decode_other(image, channels)


def _decode_jpeg(image: bytes, channels: int) -> np.ndarray:
  try:
    simplejpeg.decode_jpeg_header(image)
  except (ValueError, KeyError):  # a rare subsampling, unless it is garbage
    return _decode_other(image, channels)
  try:
    return simplejpeg.decode_jpeg(image, 'RGB' if channels == 3 else 'GRAY')
  except ValueError as error:
    raise CorruptImage(str(error)) from error


def _check_png(image: bytes):
  """Refuses a damaged PNG before libpng, which would print about it.

  Raises:
    CorruptImage: it is truncated, or a chunk does not have its checksum.
  """
  place, kind = len(_PNG_START), b''
  while kind != b'IEND':
    if place + 12 > len(image):
      raise CorruptImage('truncated')
    (length,) = struct.unpack_from('>I', image, place)
    end = place + 8 + length
    kind = image[place + 4 : place + 8]
    if end + 4 > len(image):
      raise CorruptImage('truncated, or damaged in a length')
    checksum = zlib.crc32(memoryview(image)[place + 4 : end])
    if struct.unpack_from('>I', image, end) != (checksum,):
      raise CorruptImage(f'damaged: the checksum of {kind!r} is another')
    place = end + 4


def _check_tiff(image: bytes):
  """Refuses a damaged TIFF, of which OpenCV would return what it could read.

  Raises:
    CorruptImage: it is of a kind that Pillow knows, and Pillow cannot read it.
  """
  try:
    found = Image.open(io.BytesIO(image))
  except (OSError, Image.DecompressionBombError):
    return
  try:
    with found:
      found.load()
  except Exception as error:  # of whatever kind: see Pillow's issues
    raise CorruptImage(f'damaged: {error}') from error


def _decode_other(image: bytes, channels: int) -> np.ndarray:
  color = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
  pixels = _decode_by_opencv(image, color | cv2.IMREAD_IGNORE_ORIENTATION)
  if image.startswith(_TIFF_STARTS):
    pixels = _without_alpha(image, pixels, channels)
  if channels == 1:
    return pixels[:, :, None]
  return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _without_alpha(
  image: bytes, pixels: np.ndarray, channels: int
) -> np.ndarray:
  """The pixels of a TIFF, into which OpenCV multiplies the alpha it has."""
  try:
    with Image.open(io.BytesIO(image)) as found:
      if found.mode not in ('RGBA', 'RGBa'):
        return pixels
      bgr = np.asarray(found)[:, :, 2::-1]
  except OSError as error:  # of a kind that Pillow does not know
    whole = _decode_by_opencv(image, cv2.IMREAD_UNCHANGED)
    if whole.ndim < 3 or whole.shape[2] != 4:
      return pixels
    raise CorruptImage(f'its alpha cannot be left out: {error}') from error
  return bgr if channels == 3 else cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)


def _decode_by_opencv(image: bytes, flags: int) -> np.ndarray:
  try:
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
  except cv2.error as error:
    raise CorruptImage(str(error).strip()) from error
  if pixels is None:
    raise CorruptImage('truncated, damaged or of no known format')
  return pixels


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
  if image.ndim == 2:
    image = image[:, :, None]
  if image.shape[2] == channels:
    return image
  if channels == 3:
    return np.repeat(image[:, :, :1], 3, axis=2)
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
