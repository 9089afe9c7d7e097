import jax
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import build, unbox


class InMemory:
  """Random images as a data set."""

  num_classes, channels, multi_label = 4, 1, False
  fingerprint, lengths = 'of a test', {}
  class_names = ('a', 'b', 'c', 'd')

  def __init__(self, examples, multi_label=False):
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (examples, 8, 8, 1), np.uint8)
    self.labels = rng.integers(0, 4, examples)
    self.multi_label = multi_label

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    label = int(self.labels[i])
    if self.multi_label:
      hot = np.zeros(4, np.float32)
      hot[[label, (label + 1) % 4]] = 1
      label = hot
    return {'image': self.images[i], 'label': label}

  def describe(self, i):
    return f'example {i}'


@pytest.fixture(scope='session')
def in_memory():
  return InMemory


def small_config():
  """Of a small model and its attack."""
  config = config_lib.default()
  config.model.update(
    dict(
      patch=4, hidden=16, layers=2, heads=2, mlp=16, num_classes=4, channels=1
    )
  )
  config.model.update(dict(experts=4, moe_every=1, head='gap'))
  config.model.router.update(dict(selected=2, group_images=2))
  config.data.threads = 2
  config.train.batch_size = 8
  config.attack.update(dict(eps=(0.05, 0.2), steps=4))
  return config


@pytest.fixture
def config():
  return small_config()


@pytest.fixture(scope='session')
def model_of():
  weights = {}  # of each model and mesh: drawn once

  def make(config, shape=(1, 1, 1)):
    mesh = mesh_lib.create(shape, jax.devices()[: int(np.prod(shape))])
    model = build(config.model, (8, 8, 1), mesh)
    if (kind := (str(config.model), shape)) not in weights:
      params = unbox(jax.jit(model.init)(jax.random.key(1)))
      # A head that starts at zero has nothing to attack.
      head = params['head']['kernel'].shape
      params['head']['kernel'] = jax.random.normal(jax.random.key(2), head)
      weights[kind] = params
    # Dictionaries of its own, in which a test may change a leaf.
    return model, jax.tree.map(lambda leaf: leaf, weights[kind])

  return make


@pytest.fixture(scope='session')
def opened(tmp_path_factory):
  """What a mode is given to judge, in a folder of its own."""

  def make(config, source, model, params, workdir=None):
    workdir = workdir or tmp_path_factory.mktemp('judged')
    mesh = model.module.mesh
    classifier = Classifier(model, params, config, mesh, workdir, 3)
    return Job(classifier, source, config, workdir)

  return make
