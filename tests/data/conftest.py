"""Real JPEGs, and a data set that TFDS itself prepares from them."""

import io

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vmoe_robust import config

TRAIN, TEST = 20, 6


def _jpeg(seed: int, height: int = 20, width: int = 30) -> bytes:
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(small).resize((width, height)).save(buffer, 'JPEG')
  return buffer.getvalue()


class _Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')
  name = 'pets'

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(
          shape=(None, None, 3), encoding_format='jpeg'
        ),
        'label': tfds.features.ClassLabel(names=['cat', 'dog']),
        'file_name': tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, supervised_keys=('image', 'label')
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(0, TRAIN),
      'test': self._generate_examples(TRAIN, TRAIN + TEST),
    }

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      yield (
        i,
        {
          'image': io.BytesIO(_jpeg(i)),
          'label': i % 2,
          'file_name': f'pet{i}.jpg',
        },
      )


class _MultiLabelBuilder(_Builder):
  name = 'tagged'

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        'picture': tfds.features.Image(
          shape=(None, None, 1), encoding_format='jpeg'
        ),
        'tags': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=4)),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      tags = [i % 4] if i % 4 else [0, 3]
      yield i, {'picture': io.BytesIO(_jpeg(i)), 'tags': tags}


@pytest.fixture
def jpeg():
  return _jpeg


@pytest.fixture
def make_data():
  """Makes `config.data` with some fields set."""

  def make(**fields):
    data = config.default().data
    data.update(fields)
    return data

  return make


@pytest.fixture
def tfds_root(tmp_path):
  """A data directory with 'pets' 1.0.0 in ArrayRecord."""
  _Builder(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  return tmp_path


@pytest.fixture
def multi_label_root(tmp_path):
  builder = _MultiLabelBuilder(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  return tmp_path


@pytest.fixture
def image_folder(tmp_path, jpeg):
  """20 training and 6 test images; the class 'eel' has none in the test."""
  for split, names, count in (
    ('train', ('cat', 'dog', 'eel', 'fox'), 5),
    ('test', ('cat', 'dog', 'fox'), 2),
  ):
    for c, name in enumerate(names):
      directory = tmp_path / split / name
      directory.mkdir(parents=True)
      for i in range(count):
        (directory / f'{i}.jpg').write_bytes(jpeg(100 * c + i))
      (directory / 'notes.txt').write_text('no image')
  return tmp_path


@pytest.fixture
def sharding():
  mesh = jax.make_mesh(
    (2, 4), ('data', 'expert'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec(('data', 'expert'))
  return jax.sharding.NamedSharding(mesh, spec)
