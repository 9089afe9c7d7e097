import json
import pickle
import shutil

import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import open_source
from vmoe_robust.data.decode import decode_image


def test_examples_are_what_tfds_wrote(make_data, tfds_root, jpeg):
  data = make_data(name='pets', dir=str(tfds_root))
  train = open_source(data, 'train')
  assert len(train) == 20
  assert train.class_names == ('cat', 'dog') and train.num_classes == 2
  assert train.channels == 3 and not train.multi_label
  for i in range(20):
    number = int(train.describe(i).split('(pet')[1].split('.')[0])
    assert train[i] == dict(image=jpeg(number), label=number % 2)


def test_slices_are_in_the_order_of_the_whole(make_data, tfds_root):
  data = make_data(name='pets', dir=str(tfds_root))
  whole, part = open_source(data, 'train'), open_source(data, 'train[5:7]+test')
  assert len(part) == 8
  assert part[1] == whole[6]


def test_names_may_hold_the_version_and_the_highest_is_taken(
  make_data, tfds_root
):
  old = tfds_root / 'pets' / '0.9.10'
  shutil.copytree(tfds_root / 'pets' / '1.0.0', old)
  for name, version in (
    ('pets', '1.0.0'),
    ('pets:0.9.10', '0.9.10'),
    ('pets/0.9.10', '0.9.10'),
  ):
    source = open_source(make_data(name=name, dir=str(tfds_root)), 'test')
    assert f'/{version} ' in source.describe(0)


def test_configs_are_found_or_listed(make_data, tfds_root):
  version = tfds_root / 'pets' / '1.0.0'
  shutil.copytree(version, tfds_root / 'pets' / 'big' / '1.0.0')
  shutil.rmtree(version)
  for name in ('pets', 'pets/big', 'pets/big:1.0.0'):
    assert len(open_source(make_data(name=name, dir=str(tfds_root)), 'test'))
  shutil.copytree(tfds_root / 'pets' / 'big', tfds_root / 'pets' / 'small')
  with pytest.raises(UserError, match='pets/big, pets/small'):
    open_source(make_data(name='pets', dir=str(tfds_root)), 'test')


def test_several_labels_an_image_become_a_vector(make_data, multi_label_root):
  data = make_data(name='tagged', dir=str(multi_label_root))
  source = open_source(data, 'train')
  assert source.multi_label and source.num_classes == 4
  assert source.channels == 1
  labels = np.stack([source[i]['label'] for i in range(20)])
  assert labels.sum(0).tolist() == [5, 5, 5, 10]
  assert labels.dtype == np.float32
  assert decode_image(source[0]['image'], 1).shape == (20, 30, 1)


def test_images_that_are_no_bytes_are_refused(make_data, tfds_root):
  (path,) = tfds_root.rglob('features.json')
  text = path.read_text().replace('"jpeg"', '"png"')
  assert '"uint8"' in text and '"png"' in text
  path.write_text(text.replace('"uint8"', '"uint16"'))
  with pytest.raises(UserError, match="'image'.* of uint16, and pixels"):
    open_source(make_data(name='pets', dir=str(tfds_root)), 'train')


def test_the_fingerprint_is_of_the_examples_not_of_the_place(
  make_data, tfds_root, tmp_path
):
  shutil.copytree(tfds_root, tmp_path / 'copy')
  one, copy, part, other = (
    open_source(make_data(name='pets', dir=str(root)), split).fingerprint
    for root, split in (
      (tfds_root, 'train'),
      (tmp_path / 'copy', 'train'),
      (tfds_root, 'train[:5]'),
      (tfds_root, 'test'),
    )
  )
  assert one == copy and len({one, part, other}) == 3


def test_a_directory_that_cannot_be_is_named(make_data):
  for where, why in (('~nosuch/x', 'unknown user'), ('gs://b/x', 'an address')):
    with pytest.raises(UserError, match=f"config.data.dir='{where}'.* {why}"):
      open_source(make_data(name='pets', dir=where), 'train')


def test_a_source_travels_to_another_process(make_data, tfds_root):
  source = open_source(make_data(name='pets', dir=str(tfds_root)), 'train[3:]')
  twin = pickle.loads(pickle.dumps(source))
  assert len(twin) == 17 and twin[4] == source[4]


def test_an_unknown_name_is_corrected(make_data, tfds_root):
  with pytest.raises(UserError) as error:
    open_source(make_data(name='pest', dir=str(tfds_root)), 'train')
  text = str(error.value)
  assert "did you mean 'pets'?" in text and str(tfds_root) in text
  with pytest.raises(UserError, match="did you mean 'digits'?"):
    open_source(make_data(name='digit', dir=str(tfds_root)), 'train')


def test_missing_data_say_where_they_were_looked_for(make_data, tmp_path):
  root = tmp_path / 'nowhere'
  with pytest.raises(UserError) as error:
    open_source(make_data(name='cifar10', dir=str(root)), 'train')
  text = str(error.value)
  assert str(root / 'cifar10') in text and 'no such directory' in text
  assert 'vmoe_robust.data.convert' in text and 'array_record' in text
  assert '\n' not in text


def test_the_environment_says_where_data_are(make_data, tfds_root, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_root))
  assert len(open_source(make_data(name='pets'), 'test')) == 6


def test_tfrecord_names_the_converter(make_data, tfds_root):
  path = tfds_root / 'pets' / '1.0.0' / 'dataset_info.json'
  info = json.loads(path.read_text()) | {'fileFormat': 'tfrecord'}
  path.write_text(json.dumps(info))
  with pytest.raises(UserError, match='python -m vmoe_robust.data.convert'):
    open_source(make_data(name='pets', dir=str(tfds_root)), 'train')


def test_a_missing_file_is_named(make_data, tfds_root):
  next((tfds_root / 'pets' / '1.0.0').glob('*test.array*')).unlink()
  data = make_data(name='pets', dir=str(tfds_root))
  assert len(open_source(data, 'train')) == 20
  with pytest.raises(UserError, match='pets-test.array_record-00000-of-00001'):
    open_source(data, 'test')


def test_an_unfinished_directory_is_refused(make_data, tfds_root):
  (tfds_root / 'pets' / '1.0.0' / 'dataset_info.json').unlink()
  with pytest.raises(UserError, match='not prepared to the end'):
    open_source(make_data(name='pets', dir=str(tfds_root)), 'train')
