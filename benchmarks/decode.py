"""Speed of the training input path, JPEG bytes to 224-pixel crops, one thread.

  python benchmarks/decode.py

Each way decodes the same 500x375 JPEGs, takes the same Inception crops and
mirrors half of them. The ways take turns, and a number is the median over the
rounds of images per CPU-second; ratios are to Pillow's within the same round.
The files come in two sizes, because most of the time goes into the entropy
coding and grows with the bytes. A table for people, then one line of JSON.
"""

import io
import json
import statistics
import time

import cv2
import numpy as np
from PIL import Image

from vmoe_robust import config as config_lib
from vmoe_robust.data import augment
from vmoe_robust.data.decode import decode_image

HEIGHT, WIDTH = 375, 500
IMAGES, ROUNDS = 64, 9
# JPEG quality and the strength of the finest detail, in grey levels.
FILES = {'detailed': (90, 22), 'smooth': (75, 0)}


def photographs(quality: int, grain: int) -> list[bytes]:
  """JPEGs of the size and the entropy of photographs: smooth plus grain."""
  rng = np.random.default_rng(0)
  encoded = []
  for _ in range(IMAGES):
    image = np.zeros((HEIGHT, WIDTH, 3))
    for scale, weight in ((48, 150), (12, 60), (3, 40), (1, grain)):
      shape = (HEIGHT // scale + 2, WIDTH // scale + 2, 3)
      noise = rng.uniform(-1, 1, shape)
      image += weight * cv2.resize(
        noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
      )
    pixels = np.clip(image + 128, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'JPEG', quality=quality)
    encoded.append(buffer.getvalue())
  return encoded


def ours(image: bytes, data, rng) -> np.ndarray:
  """What the pipeline does."""
  return augment.training_image(decode_image(image, 3), data, rng)


def opencv(image: bytes, data, rng) -> np.ndarray:
  """The same with OpenCV's decoder."""
  pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
  pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
  return augment.training_image(pixels, data, rng)


def pillow(image: bytes, data, rng) -> np.ndarray:
  """The same with Pillow alone, as torchvision's transforms do it."""
  picture = Image.open(io.BytesIO(image)).convert('RGB')
  top, left, height, width = augment.inception_box(
    picture.height, picture.width, data.crop_min_area, rng
  )
  crop = picture.crop((left, top, left + width, top + height))
  crop = crop.resize((data.image_size,) * 2, Image.Resampling.BILINEAR)
  if rng.random() < 0.5:
    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(crop)


WAYS = {'ours': ours, 'OpenCV': opencv, 'Pillow': pillow}


def measure(images: list[bytes]) -> dict[str, list[float]]:
  """Images per CPU-second of each way, round by round."""
  data = config_lib.default().data
  data.image_size, data.crop, data.flip = 224, 'inception', True
  speeds = {name: [] for name in WAYS}
  for round_ in range(ROUNDS + 1):
    for name, way in WAYS.items():
      rng = np.random.default_rng(round_)
      begin = time.process_time()
      for image in images:
        way(image, data, rng)
      if round_:  # the first warms up
        speeds[name].append(len(images) / (time.process_time() - begin))
  return speeds


def main():
  """Measures, prints the table and the line of JSON."""
  print(f'{WIDTH}x{HEIGHT} JPEG to 224x224 crops')
  print(
    f'{"files":<18} {"way":<8} {"images/CPU-s":>13} {"ratio to Pillow":>16}'
  )
  result = {}
  for files, (quality, grain) in FILES.items():
    images = photographs(quality, grain)
    kilobytes = round(statistics.mean(map(len, images)) / 1000)
    result[files] = dict(kilobytes=kilobytes)
    speeds = measure(images)
    for name, found in speeds.items():
      pairs = zip(found, speeds['Pillow'], strict=True)
      ratio = statistics.median(a / b for a, b in pairs)
      speed = statistics.median(found)
      label = f'{files}, {kilobytes} KB'
      print(f'{label:<18} {name:<8} {speed:>13.0f} {ratio:>16.2f}')
      result[files][name.lower()] = dict(
        images_per_cpu_second=round(speed, 1), ratio=round(ratio, 3)
      )
  print(json.dumps(result))


if __name__ == '__main__':
  main()
