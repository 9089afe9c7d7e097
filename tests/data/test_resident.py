"""Data that stay on the devices: the same order, pixels and masks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import (
  Resident,
  on_devices,
  open_source,
  order,
  resident,
  resident_batch,
  train_batches,
)
from vmoe_robust.data.residence import SHARE, size


class Numbered:
  """A source whose images say which example they are."""

  num_classes, class_names = 3, ('a', 'b', 'c')
  fingerprint, lengths = 'of a test', {}
  multi_label, channels = False, 1

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    return dict(image=np.full((8, 8, 1), i + 1, np.uint8), label=i % 3)

  def describe(self, i):
    return f'number {i}'


@pytest.fixture
def both(sharding):
  """Opens the same data in the two ways, and closes them in the end."""
  opened = []

  def make(data, source, size=16, seed=0, state=None):
    fields = dict(batch_size=size, seed=seed, sharding=sharding, state=state)
    opened.extend(
      [train_batches(data, source, **fields), Resident(data, source, **fields)]
    )
    return opened[-2:]

  yield make
  for batches in opened:
    batches.close()


def from_host(batches, count):
  found = [jax.device_get(next(batches)) for _ in range(count)]
  return {k: np.stack([b[k] for b in found]) for k in found[0]}


def from_devices(batches, data, steps, most=None):
  """The batches of some steps, gathered in one program."""
  rows = batches.take(steps, most or steps)
  gather = jax.jit(
    lambda arrays, rows: jax.lax.map(
      lambda one: resident_batch(arrays, one['index'], one['epoch'], data), rows
    )
  )
  found = jax.device_get(gather(batches.arrays, rows))
  return {name: x[:steps] for name, x in found.items()}


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name, x in a.items():
    assert x.dtype == b[name].dtype
    np.testing.assert_array_equal(x, b[name])


def test_the_order_is_the_hosts_over_two_epochs(make_data, both):
  """Batches straddle epochs: 37 examples in batches of 8."""
  data = make_data()
  host, devices = both(data, Numbered(37), size=8, seed=5)
  expected = from_host(host, 10)
  parts = [from_devices(devices, data, steps, 4) for steps in (1, 4, 3, 2)]
  found = {k: np.concatenate([p[k] for p in parts]) for k in expected}
  assert_same(found, expected)
  first_epoch = found['image'].reshape(80, -1)[:37, 0]
  assert sorted(first_epoch) == list(range(1, 38))
  assert devices.state() == host.state() | {'resident': True}


@pytest.mark.parametrize('examples', [1, 2, 37, 1437, 65_536, 65_538, 200_000])
def test_an_epoch_at_once_is_grains(examples):
  epochs, numbers = order.Epochs(examples, 7), order.shuffled(examples, 7)
  assert epochs._seed is not None  # grain's shuffle is the one we know
  index, epoch = epochs(0, 3 * examples)
  epochs.close()
  some = np.unique(np.linspace(0, 3 * examples - 1, 301).astype(int))
  assert index[some].tolist() == [numbers[int(i)] for i in some]
  np.testing.assert_array_equal(epoch, np.arange(3 * examples) // examples)


def test_grain_is_asked_if_its_shuffle_is_another(monkeypatch):
  other = lambda examples, seed: np.arange(examples)
  monkeypatch.setattr(order, 'permutation', other)
  epochs, numbers = order.Epochs(50, 7), order.shuffled(50, 7)
  index, _ = epochs(30, 100)
  epochs.close()
  assert index.tolist() == [numbers[30 + i] for i in range(100)]


def test_either_goes_on_where_the_other_stopped(make_data, both):
  data, source = make_data(), Numbered(37)
  host, devices = both(data, source, size=8)
  whole = from_host(host, 9)
  from_devices(devices, data, 4)
  for state in (devices.state(), host.state() | {'consumed': 32}):
    state = json.loads(json.dumps(state))
    later = both(data, source, size=8, state=state)
    expected = {k: v[4:] for k, v in whole.items()}
    assert_same(from_host(later[0], 5), expected)
    assert_same(from_devices(later[1], data, 5), expected)
  with pytest.raises(UserError, match='config.seed=1'):
    both(data, source, seed=1, state=host.state())


def test_photographs_are_decoded_as_on_the_host(make_data, both, image_folder):
  data = make_data(
    name='folder', dir=str(image_folder), image_size=12, resize=14
  )
  source = open_source(data, 'train')
  host, devices = both(data, source)
  assert_same(from_devices(devices, data, 3), from_host(host, 3))


def test_several_labels_an_image_even_none(make_data, both):
  class Tagged(Numbered):
    multi_label = True

    def __getitem__(self, i):
      label = np.float32([i % 2, i % 3 == 0, 0])
      return super().__getitem__(i) | {'label': label}

  data = make_data()
  host, devices = both(data, Tagged(20))
  found, expected = from_devices(devices, data, 2), from_host(host, 2)
  assert_same(found, expected)
  assert found['label'].shape == (2, 16, 3) and found['mask'].all()
  assert not found['label'].any(axis=-1).all()


@pytest.mark.slow
def test_corrupt_and_unlabelled_images_are_masked(
  make_data, both, image_folder
):
  bad = image_folder / 'train' / 'dog' / '3.jpg'
  bad.write_bytes(bad.read_bytes()[:100])
  fields = dict(name='folder', dir=str(image_folder), image_size=12)
  data = make_data(**fields, on_corrupt='skip', crop='pad', pad=2, flip=True)
  source = open_source(data, 'train')
  host, devices = both(data, source, size=8)
  found, expected = from_devices(devices, data, 5), from_host(host, 5)
  np.testing.assert_array_equal(found['mask'], expected['mask'])
  np.testing.assert_array_equal(found['label'], expected['label'])
  assert (~found['mask']).sum() == 2 and not found['image'][
    ~found['mask']
  ].any()
  assert devices.corrupt == [str(bad)]
  with pytest.raises(UserError, match="config.data.on_corrupt='skip'"):
    Resident(
      make_data(**fields),
      source,
      batch_size=8,
      seed=0,
      sharding=devices.arrays['image'].sharding,
    )

  class Unlabelled(Numbered):
    def __getitem__(self, i):
      return super().__getitem__(i) | {'label': -1 if i == 4 else i % 3}

  data = make_data(on_unlabelled='skip')
  host, devices = both(data, Unlabelled(20))
  assert_same(from_devices(devices, data, 3), from_host(host, 3))
  assert 'number 4: its label -1' in devices.corrupt[0]


def test_crops_and_mirrors_are_those_of_numpy_given_the_draws():
  image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
  pad = 2
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  for top in range(2 * pad + 1):
    for left in range(2 * pad + 1):
      for mirror in (False, True):
        expected = padded[top : top + 6, left : left + 5]
        expected = expected[:, ::-1] if mirror else expected
        found = resident.crop(
          jnp.asarray(image),
          jnp.int32(top),
          jnp.int32(left),
          jnp.asarray(mirror),
          pad,
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_draws_follow_seed_epoch_and_example_alone(make_data, both):
  """Whatever the batch size and the place in the batch."""
  data = make_data(crop='pad', pad=2, flip=True)
  source = open_source(make_data(), 'train[:40]')

  def by_example(size, seed):
    """The images of each of two epochs, in the order of the split."""
    batches = both(data, source, size=size, seed=seed)[1]
    rows = jax.device_get(batches.take(80 // size, 80 // size))
    found = both(data, source, size=size, seed=seed)[1]
    images = from_devices(found, data, 80 // size)['image'].reshape(80, 64)
    place = np.lexsort((rows['index'].ravel(), rows['epoch'].ravel()))
    return images[place].reshape(2, 40, 64)

  images = by_example(8, 0)
  np.testing.assert_array_equal(by_example(16, 0), images)
  assert (images[0] != images[1]).any(-1).mean() > 0.8
  assert (by_example(8, 1)[0] != images[0]).any(-1).mean() > 0.8


def test_draws_are_uniform():
  keys = jax.random.split(jax.random.key(0), 3000)
  tops, lefts, mirrored = jax.vmap(lambda k: resident.draws(k, 1))(keys)
  for places in (tops, lefts):
    shares = np.bincount(places, minlength=3) / 3000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
  both = np.mean(np.asarray(mirrored) & (np.asarray(tops) == 0))
  assert abs(np.mean(mirrored) - 1 / 2) < 0.04 and abs(both - 1 / 6) < 0.03


def test_draws_are_those_of_float32_under_x64():
  keys = jax.random.split(jax.random.key(0), 50)
  some = lambda: jax.vmap(lambda k: resident.draws(k, 3))(keys)
  found = some()
  with jax.enable_x64(True):
    for a, b in zip(some(), found, strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


def test_the_choice_is_arithmetic(make_data):
  source = Numbered(1000)  # 64 bytes each
  assert size(make_data(), source) == 64_000
  enough = 64_000 / SHARE
  for data, memory, expected in (
    (make_data(), enough, True),
    (make_data(), enough - 4, False),
    (make_data(image_size=16), enough, False),
    (make_data(crop='pad', pad=1, flip=True, mixup=0.3), enough, True),
    (make_data(crop='inception'), enough, False),
    (make_data(randaugment_layers=2), enough, False),
    (make_data(resident=False), enough, False),
    (make_data(resident=True), enough, True),
  ):
    assert on_devices(data, source, memory=memory) is expected

  class ImageNet(Numbered):
    channels = 3

  imagenet, h100 = ImageNet(1_281_167), 80 * 2**30
  data = make_data(image_size=224)
  assert round(size(data, imagenet) / 1e9) == 193
  assert not on_devices(data, imagenet, memory=h100)
  cifar10 = ImageNet(50_000)
  assert on_devices(make_data(image_size=32), cifar10, memory=h100)


def test_a_run_goes_on_as_it_began(make_data, caplog):
  source, enough = Numbered(1000), 64_000 / SHARE
  ask = lambda resident, before, memory: on_devices(
    make_data(resident=resident), source, before, memory
  )
  assert not ask(None, False, enough) and ask(None, True, enough)
  assert ask(True, False, enough) and not ask(False, True, enough)
  assert not caplog.text
  assert not ask(None, True, enough / 2)
  assert 'batches now come from the host' in caplog.text


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    (dict(crop='inception'), "config.data.crop='inception'"),
    (dict(randaugment_layers=2), 'config.data.randaugment_layers=2'),
    (dict(image_size=4096), 'decoded images .* GiB, more than 25% of'),
  ],
)
def test_what_cannot_be_is_refused(make_data, fields, reason):
  data = make_data(resident=True, **fields)
  with pytest.raises(UserError, match=reason) as error:
    on_devices(data, Numbered(1000), memory=1e9)
  text = str(error.value)
  assert 'config.data.resident=True' in text and 'leave it out' in text
  assert '\n' not in text


def test_every_device_holds_the_split(make_data, both):
  devices = both(make_data(), Numbered(20))[1]
  image = devices.arrays['image']
  assert image.dtype == np.uint8 and image.is_fully_replicated
  assert len(image.addressable_shards) == 8
