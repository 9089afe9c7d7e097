"""Speed of the training input path, JPEG bytes to 224-pixel crops, one thread.

  python benchmarks/decode.py

Each way decodes the same 500x375 JPEGs, takes the same Inception crops and
mirrors half of them. The ways take turns, and a number is the median over the
rounds of images per CPU-second; ratios are to Pillow's within the same round.
The files come in several sizes, because most of the time goes into the entropy
coding and grows with the bytes. A table for people, then one line of JSON.
"""

import io
import json
import statistics
from functools import partial

import cv2
import numpy as np
import timing
from PIL import Image
from sklearn.datasets import load_sample_images

from vmoe_robust import config as config_lib
from vmoe_robust.data import augment
from vmoe_robust.data.decode import decode_image

HEIGHT, WIDTH = 375, 500
IMAGES, ROUNDS = 64, 9
QUALITIES = (75, 90, 95)  # of JPEG; 75 is libjpeg's default


def photographs(quality: int) -> list[bytes]:
  """The two that scikit-learn ships, at the size of an ImageNet picture."""
  encoded = []
  for image in load_sample_images().images:
    image = Image.fromarray(image)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=quality)
    encoded.append(buffer.getvalue())
  return encoded * (IMAGES // len(encoded))


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
  """CPU-seconds of each way for all images, round by round."""
  data = config_lib.default().data
  data.image_size, data.crop, data.flip = 224, 'inception', True

  def run(way):
    rng = np.random.default_rng(0)  # the same crops for all
    for image in images:
      way(image, data, rng)

  return timing.interleave(
    {n: partial(run, w) for n, w in WAYS.items()}, ROUNDS
  )


def main():
  """Measures, prints the table and the line of JSON."""
  print(f'{WIDTH}x{HEIGHT} JPEG to 224x224 crops')
  print(
    f'{"files":<20} {"way":<8} {"images/CPU-s":>13} {"ratio to Pillow":>16}'
  )
  result = {}
  for quality in QUALITIES:
    images = photographs(quality)
    kilobytes = round(statistics.mean(map(len, images)) / 1000)
    files = f'quality {quality}'
    result[files] = dict(kilobytes=kilobytes)
    spent = measure(images)
    for name, seconds in spent.items():
      ratio = 1 / timing.ratio(spent, name, 'Pillow')
      speed = len(images) / statistics.median(seconds)
      label = f'{files}, {kilobytes} KB'
      print(f'{label:<20} {name:<8} {speed:>13.0f} {ratio:>16.2f}')
      result[files][name.lower()] = dict(
        images_per_cpu_second=round(speed, 1), ratio=round(ratio, 3)
      )
  print(json.dumps(result))


if __name__ == '__main__':
  main()
