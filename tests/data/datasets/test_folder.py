import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vmoe_robust.config import UserError
from vmoe_robust.data import examples, open_source
from vmoe_robust.data.datasets import folder
from vmoe_robust.data.decode import decode_image


def test_classes_are_those_of_all_splits(make_data, image_folder):
  data = make_data(name='folder', dir=str(image_folder))
  train, test = open_source(data, 'train'), open_source(data, 'test')
  assert train.class_names == test.class_names == ('cat', 'dog', 'eel', 'fox')
  assert (len(train), len(test)) == (20, 6)
  for i in range(6):
    path = pathlib.Path(test.describe(i))
    assert path.parents[1] == image_folder / 'test'
    assert test.class_names[test[i]['label']] == path.parent.name
    assert test[i]['image'] == path.read_bytes()
  assert len({test.describe(i) for i in range(6)}) == 6


def test_a_part_is_a_sample_of_all_classes(make_data, tmp_path):
  classes = [f'c{i}' for i in range(4)]
  for name in classes:
    (tmp_path / 'train' / name).mkdir(parents=True)
    for i in range(500):
      (tmp_path / 'train' / name / f'{i:03}.png').touch()
  data = make_data(name='folder', dir=str(tmp_path))
  whole = open_source(data, 'train')
  labels = np.array(whole.labels)
  # Neighbours, which mixup mixes, are of one class as often as by chance:
  # 250 of 1,000 pairs, of which the deviation is 14; the order is a fixed one.
  pairs = (labels[::2] == labels[1::2]).sum()
  assert abs(pairs - 250) < 3 * 14
  part = open_source(data, 'train[:200]')
  assert part.labels == whole.labels[:200]
  counts = np.bincount(part.labels, minlength=4)
  assert np.all(abs(counts - 50) < 3 * 6.2)


def test_the_order_and_the_fingerprint_follow_names_alone(
  make_data, image_folder, tmp_path
):
  copy = tmp_path / 'copy'
  shutil.copytree(image_folder, copy)
  one, other = (
    open_source(make_data(name='folder', dir=str(d)), 'train')
    for d in (image_folder, f'{copy}/')
  )
  names = [
    [pathlib.Path(s.describe(i)).parts[-2:] for i in range(len(s))]
    for s in (one, other)
  ]
  assert names[0] == names[1] and one.fingerprint == other.fingerprint
  prints = {one.fingerprint}
  for change in (
    lambda: (copy / 'train/cat/0.jpg').rename(copy / 'train/dog/99.jpg'),
    lambda: (copy / 'train/dog/99.jpg').rename(copy / 'train/dog/98.jpg'),
    lambda: (copy / 'train/dog/98.jpg').unlink(),
  ):
    change()
    data = make_data(name='folder', dir=str(copy))
    prints.add(open_source(data, 'train').fingerprint)
  assert len(prints) == 4
  assert open_source(data, 'train[:3]').fingerprint not in prints


def test_splits_can_be_cut_and_added(make_data, image_folder):
  data = make_data(name='folder', dir=str(image_folder))
  assert len(open_source(data, 'train[:50%]+test')) == 16


@pytest.mark.parametrize('directory', ['', '/no/such/place', '~nosuch/x'])
def test_a_missing_folder_is_named(make_data, directory):
  with pytest.raises(UserError, match=f"config.data.dir='{directory}'"):
    open_source(make_data(name='folder', dir=directory), 'train')


def test_a_folder_without_classes_says_how_it_should_look(make_data, tmp_path):
  with pytest.raises(UserError, match='<split>/<class>/<image>.jpg'):
    open_source(make_data(name='folder', dir=str(tmp_path)), 'train')


def test_a_split_whose_images_are_gone_is_empty(make_data, image_folder):
  for path in (image_folder / 'test').glob('*/*.jpg'):
    path.unlink()
  data = make_data(name='folder', dir=str(image_folder))
  with pytest.raises(UserError, match='holds no examples'):
    open_source(data, 'test')
  shutil.rmtree(image_folder / 'test')
  with pytest.raises(UserError, match="'train' \\(20 examples\\)"):
    open_source(data, 'test')


@pytest.fixture
def littered(image_folder, jpeg):
  """The folder with one of each thing that is no image in the test split."""
  test, image = image_folder / 'test', jpeg(0)
  for notes in image_folder.glob('*/*/notes.txt'):
    notes.unlink()
  (test / 'cat' / '._0.jpg').write_bytes(image)
  (test / 'cat' / 'raw.cr2').write_bytes(image)
  (test / 'dog' / 'deeper').mkdir()
  (test / 'dog' / 'deeper' / '0.jpg').write_bytes(image)
  (test / '.cache').mkdir()
  (test / 'loose.jpg').write_bytes(image)
  (test / 'eel').mkdir()
  return image_folder


def test_what_is_left_out_is_counted_and_named(
  make_data, littered, caplog, monkeypatch
):
  monkeypatch.setattr(folder, '_NAMED', 9)
  source = open_source(make_data(name='folder', dir=str(littered)), 'test')
  assert sorted(source.labels) == [0, 0, 1, 1, 3, 3]
  test = littered / 'test'
  (line,) = [r.getMessage() for r in caplog.records]
  left_out = [
    f'{test}/.cache (hidden)',
    f'{test}/cat/._0.jpg (hidden)',
    f'{test}/cat/raw.cr2 (its ending .cr2)',
    f'{test}/dog/deeper (a folder inside a class)',
    f'{test}/loose.jpg (in no class)',
  ]
  assert line == (
    f'config.data.dir={littered}: 5 entries are left out: '
    f'{", ".join(left_out)}; 1 classes have no images: {test}/eel'
  )


def test_a_long_list_is_cut(make_data, littered, caplog):
  open_source(make_data(name='folder', dir=str(littered)), 'test')
  assert '5 entries are left out' in caplog.text
  assert 'raw.cr2 (its ending .cr2), 2 more;' in caplog.text


def test_a_clean_split_is_silent(make_data, littered, caplog):
  open_source(make_data(name='folder', dir=str(littered)), 'train')
  assert not caplog.text


def test_a_class_of_which_nothing_can_be_read_is_refused(
  make_data, image_folder
):
  cats = image_folder / 'test' / 'cat'
  for image in cats.glob('*.jpg'):
    image.rename(image.with_suffix('.heic'))
  with pytest.raises(UserError, match=f'none of the files in {cats} is an im'):
    open_source(make_data(name='folder', dir=str(image_folder)), 'test')


def test_more_endings_are_read(make_data, image_folder, jpeg):
  cats = image_folder / 'test' / 'cat'
  pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
  Image.fromarray(pixels).save(cats / '2.tif')
  (cats / '3.JFIF').write_bytes(jpeg(3))
  source = open_source(make_data(name='folder', dir=str(image_folder)), 'test')
  assert len(source) == 8
  place = {pathlib.Path(path).name: i for i, path in enumerate(source.paths)}
  tif, jfif = source[place['2.tif']], source[place['3.JFIF']]
  np.testing.assert_array_equal(decode_image(tif['image'], 3), pixels)
  assert decode_image(jfif['image'], 3).shape == (20, 30, 3)


def test_a_broken_link_is_a_corrupt_image(make_data, image_folder):
  (image_folder / 'test' / 'cat' / '0.jpg').unlink()
  (image_folder / 'test' / 'cat' / '0.jpg').symlink_to('/no/such/image')
  data = make_data(name='folder', dir=str(image_folder))
  source = open_source(data, 'test')
  with pytest.raises(
    UserError, match='0.jpg is .*link to nothing, /no/such/im'
  ):
    examples(source, data, 6)
  data.on_corrupt = 'skip'
  assert sorted(examples(source, data, 6)[1].tolist()) == [0, 1, 1, 3, 3]


def test_a_part_of_one_class_is_told(make_data, image_folder, caplog):
  data = make_data(name='folder', dir=str(image_folder))
  open_source(data, 'test')
  assert 'images of 3 of 4 classes, and none of eel' in caplog.text
  open_source(data, 'test[:1]')
  assert 'images of 1 of 4 classes, and none of cat, eel, fox' in caplog.text


def test_folders_beside_the_splits_are_no_classes(
  make_data, image_folder, jpeg, caplog
):
  """Such as work directories, and what macOS leaves in an archive."""
  for path in ('runs/a/config.json', 'docs/notes/a.txt', 'x/train/cat/._0.jpg'):
    (image_folder / path).parent.mkdir(parents=True)
    (image_folder / path).write_bytes(jpeg(0))
  data = make_data(name='folder', dir=str(image_folder))
  for split in ('train', 'all'):
    caplog.clear()
    source = open_source(data, split)
    assert source.class_names == ('cat', 'dog', 'eel', 'fox')
    assert 'docs, runs, x hold no images in folders of classes' in caplog.text
  with pytest.raises(UserError, match=r'holds no examples.*runs'):
    open_source(data, 'runs')


def test_a_class_without_images_in_any_split_is_none(
  make_data, image_folder, caplog
):
  (image_folder / 'train' / 'zebra').mkdir()
  data = make_data(name='folder', dir=str(image_folder))
  assert open_source(data, 'train').num_classes == 4
  assert f'1 classes have no images: {image_folder}/train/zebra' in caplog.text
  assert 'images of' not in caplog.text


def test_a_class_of_the_other_split_alone_is_told(
  make_data, image_folder, caplog
):
  (image_folder / 'test' / 'fox').rename(image_folder / 'test' / 'Fox')
  open_source(make_data(name='folder', dir=str(image_folder)), 'train')
  assert 'images of 4 of 5 classes, and none of Fox' in caplog.text
