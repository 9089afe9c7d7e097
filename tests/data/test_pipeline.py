import contextlib
import json

import grain
import jax
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import (
  Resident,
  eval_batches,
  open_source,
  pipeline,
  train_batches,
)
from vmoe_robust.mesh.batch import process_rows


@pytest.fixture
def open_batches(sharding):
  """Opens training batches and closes them when the test is over."""
  opened = []

  def make(data, source, batch_size=16, seed=0, state=None):
    batches = train_batches(
      data,
      source,
      batch_size=batch_size,
      seed=seed,
      sharding=sharding,
      state=state,
    )
    opened.append(batches)
    return batches

  yield make
  for batches in opened:
    batches.close()


def take(batches, count: int) -> dict[str, np.ndarray]:
  found = [jax.device_get(next(batches)) for _ in range(count)]
  return {k: np.concatenate([b[k] for b in found]) for k in found[0]}


def same(a: dict, b: dict) -> bool:
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def numbered(count: int):
  """A source whose images say which example they are."""

  class Numbered:
    num_classes, class_names = 3, ('a', 'b', 'c')
    fingerprint, lengths = 'of a test', {}
    multi_label, channels = False, 1

    def __len__(self):
      return count

    def __getitem__(self, i):
      return dict(image=np.full((8, 8, 1), i, np.uint8), label=i % 3)

    def describe(self, i):
      return f'number {i}'

  return Numbered()


def photographs(make_data, image_folder, **fields):
  return make_data(
    name='folder',
    dir=str(image_folder),
    image_size=16,
    crop='inception',
    flip=True,
    randaugment_layers=2,
    **fields,
  )


def test_a_batch_is_global_and_sharded(make_data, open_batches, sharding):
  data = make_data()
  batch = next(open_batches(data, open_source(data, 'train')))
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    'image': ((16, 8, 8, 1), 'uint8'),
    'label': ((16,), 'int32'),
    'mask': ((16,), 'bool'),
  }
  for x in batch.values():
    assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_every_epoch_has_every_example_in_another_order(
  make_data, open_batches
):
  batches = open_batches(make_data(), numbered(40), batch_size=8)
  seen = take(batches, 15)['image'][:, 0, 0, 0].reshape(3, 40)
  for epoch in seen:
    assert sorted(epoch) == list(range(40))
  assert len({tuple(epoch) for epoch in seen}) == 3
  other = take(open_batches(make_data(), numbered(40), 8, seed=1), 5)
  assert not np.array_equal(other['image'][:, 0, 0, 0], seen[0])


@pytest.mark.slow
def test_neither_threads_nor_workers_change_a_pixel(
  make_data, open_batches, image_folder
):
  runs = []
  for threads, workers in ((1, 0), (16, 0), (2, 2)):
    data = photographs(
      make_data, image_folder, threads=threads, workers=workers
    )
    batches = open_batches(data, open_source(data, 'train'), batch_size=32)
    runs.append(take(batches, 4))
  assert same(runs[0], runs[1])
  assert same(runs[0], runs[2])


def test_augmentation_differs_between_epochs(
  make_data, open_batches, image_folder
):
  data = photographs(make_data, image_folder)
  images = take(open_batches(data, open_source(data, 'train'), 8), 5)['image']
  assert len({image.tobytes() for image in images}) == 40


@pytest.mark.slow
@pytest.mark.parametrize('later_size', [16, 8, 32])
def test_a_run_resumes_where_it_was(
  make_data, open_batches, image_folder, later_size
):
  data = photographs(make_data, image_folder)
  source = open_source(data, 'train')
  whole = take(open_batches(data, source, 16), 6)
  first = open_batches(data, source, 16)
  take(first, 2)
  state = json.loads(json.dumps(first.state()))
  assert state['consumed'] == 32  # not what was loaded ahead
  later = open_batches(data, source, later_size, state=state)
  rest = take(later, 64 // later_size)
  assert same(rest, {k: v[32:] for k, v in whole.items()})
  assert later.state()['consumed'] == 96


@pytest.mark.parametrize(
  ('change', 'field'),
  [
    (dict(seed=1), 'config.seed=1'),
    (dict(count=41), 'config.data.split=41'),
    (dict(name='other'), "config.data.name='other'"),
  ],
)
def test_the_state_of_another_run_is_refused(
  make_data, open_batches, change, field
):
  state = open_batches(make_data(), numbered(40)).state()
  with pytest.raises(UserError, match=field):
    open_batches(
      make_data(name=change.get('name', 'digits')),
      numbered(change.get('count', 40)),
      seed=change.get('seed', 0),
      state=state,
    )


@pytest.mark.slow
def test_a_batch_may_be_larger_than_the_data(make_data, open_batches):
  batch = take(open_batches(make_data(), numbered(3), batch_size=24), 1)
  assert np.bincount(batch['image'][:, 0, 0, 0]).tolist() == [8, 8, 8]
  assert len(set(take(open_batches(make_data(), numbered(1)), 3)['label'])) == 1


@pytest.mark.parametrize('count', [1, 16, 21, 64])
def test_evaluation_covers_every_example_once(make_data, sharding, count):
  batches = eval_batches(
    make_data(), numbered(count), batch_size=16, sharding=sharding
  )
  assert len(batches) == -(-count // 16)
  found = take(batches, len(batches))
  assert found['index'][found['mask']].tolist() == list(range(count))
  images = found['image'][found['mask']][:, 0, 0, 0]
  assert images.tolist() == list(range(count))
  assert set(found['index'][~found['mask']]) <= {-1}
  assert found['mask'].size % 16 == 0
  assert list(batches) == []
  batches.close()


def test_several_labels_an_image(make_data, sharding, multi_label_root):
  data = make_data(name='tagged', dir=str(multi_label_root), image_size=16)
  source = open_source(data, 'test')
  batches = eval_batches(data, source, batch_size=8, sharding=sharding)
  batch = next(batches)
  batches.close()
  assert batch['label'].shape == (8, 4) and batch['label'].dtype == 'float32'
  expected = np.stack([source[i]['label'] for i in range(6)])
  assert np.array_equal(batch['label'][:6], expected)
  assert not batch['label'][6:].any()


def shards(device_sets, size, sharding):
  """Each process's rows, if the devices belonged to several processes."""
  parts = list(sharding.devices_indices_map((size,)).items())
  return [process_rows(dict(parts[i] for i in s), size) for s in device_sets]


@pytest.mark.parametrize(
  'device_sets',
  [
    [range(8)],
    [range(4), range(4, 8)],
    [(0, 2, 4, 6), (1, 3, 5, 7)],
    [(6, 7), (0, 1), (4, 5), (2, 3)],
  ],
)
def test_processes_load_disjoint_and_complete_rows(sharding, device_sets):
  rows = shards(device_sets, 48, sharding)
  assert sorted(np.concatenate(rows)) == list(range(48))
  assert {len(r) for r in rows} == {48 // len(device_sets)}


def test_a_process_reads_its_rows_of_every_batch(sharding):
  positions = grain.MapDataset.range(1000)
  both = [
    pipeline.ProcessRows(positions, rows, 16, start=32)
    for rows in shards([range(4), range(4, 8)], 16, sharding)
  ]
  for batch in range(60):
    found = [rows[8 * batch + i] for rows in both for i in range(8)]
    assert sorted(found) == list(range(32 + 16 * batch, 48 + 16 * batch))


def test_devices_in_any_order_get_their_rows(make_data):
  devices = np.array(jax.devices())[[3, 1, 0, 2]]
  mesh = jax.sharding.Mesh(devices.reshape(2, 2), ('data', 'model'))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  batches = eval_batches(
    make_data(), numbered(8), batch_size=8, sharding=sharding
  )
  batch = next(batches)
  batches.close()
  assert batch['index'].tolist() == list(range(8))
  on = {s.device: s.data.tolist() for s in batch['index'].addressable_shards}
  assert on[devices[0]] == on[devices[1]] == [0, 1, 2, 3]
  assert on[devices[2]] == on[devices[3]] == [4, 5, 6, 7]


def test_corrupt_images_are_masked_and_named(
  make_data, open_batches, sharding, image_folder
):
  bad = sorted((image_folder / 'train').glob('*/*.jpg'))[::7]
  for path in bad:
    path.write_bytes(path.read_bytes()[:-20])
  data = photographs(make_data, image_folder, on_corrupt='skip')
  source = open_source(data, 'train')
  batches = open_batches(data, source, 8)
  found = take(batches, 5)  # two epochs
  assert (~found['mask']).sum() == 2 * len(bad)
  assert not found['image'][~found['mask']].any()
  assert sorted(batches.corrupt) == [str(p) for p in bad]
  evaluation = eval_batches(data, source, batch_size=8, sharding=sharding)
  found = take(evaluation, len(evaluation))
  skipped = [i for i in found['index'][~found['mask']] if i >= 0]
  assert sorted(source.describe(int(i)) for i in skipped) == list(map(str, bad))
  assert sorted(evaluation.corrupt) == [str(p) for p in bad]
  evaluation.close()


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_image_stops_a_run_by_default(
  make_data, open_batches, image_folder, workers
):
  bad = image_folder / 'train' / 'dog' / '3.jpg'
  bad.write_bytes(bad.read_bytes()[:100])
  data = photographs(make_data, image_folder, threads=2, workers=workers)
  batches = open_batches(data, open_source(data, 'train'), 8)
  with pytest.raises(UserError, match="config.data.on_corrupt='skip'") as error:
    take(batches, 4)
  assert str(bad) in str(error.value) and '\n' not in str(error.value)
  assert list(batches) == []  # it does not go on behind the failure


def test_a_damaged_record_counts_as_corrupt(make_data, sharding, tfds_root):
  path = next((tfds_root / 'pets' / '1.0.0').glob('*test.array*'))
  content = bytearray(path.read_bytes())
  start = content.index(b'\xff\xd8\xff')
  content[start + 40] ^= 0xFF
  path.write_bytes(content)
  data = make_data(
    name='pets', dir=str(tfds_root), image_size=8, on_corrupt='skip'
  )
  source = open_source(data, 'test')
  batches = eval_batches(data, source, batch_size=8, sharding=sharding)
  batch = next(batches)
  assert int(batch['mask'].sum()) == 5
  assert len(batches.corrupt) == 1
  batches.close()


def test_closing_is_prompt_and_final(make_data, open_batches):
  batches = open_batches(make_data(prefetch=4), numbered(40))
  next(batches)
  batches.close()
  batches.close()
  assert list(batches) == []


@pytest.mark.parametrize('open_them', [train_batches, Resident])
def test_training_on_no_image_ends(make_data, sharding, open_them):
  class Unreadable(type(numbered(40))):
    def __getitem__(self, i):
      return dict(image=b'no image', label=0)

  data = make_data(on_corrupt='skip', split='train')
  fields = dict(batch_size=16, seed=0, sharding=sharding)
  words = "all 40 images of config.data.split='train' are corrupt"
  with pytest.raises(UserError, match=words):
    batches = open_them(data, Unreadable(), **fields)
    with contextlib.closing(batches):
      for _ in range(10):
        next(batches)


def test_one_image_is_enough_to_train_on(make_data, sharding):
  class Readable(type(numbered(40))):
    def __getitem__(self, i):
      return super().__getitem__(i) if i == 7 else dict(image=b'', label=0)

  data = make_data(on_corrupt='skip', split='train')
  batches = train_batches(
    data, Readable(), batch_size=16, seed=0, sharding=sharding
  )
  with contextlib.closing(batches):
    masks = [np.asarray(next(batches)['mask']) for _ in range(15)]
  assert np.sum(masks) == 6  # epochs
