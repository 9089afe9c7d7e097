import shutil

import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import open_source


def test_classes_are_those_of_all_splits(make_data, image_folder):
  data = make_data(name='folder', dir=str(image_folder))
  train, test = open_source(data, 'train'), open_source(data, 'test')
  assert train.class_names == test.class_names == ('cat', 'dog', 'eel', 'fox')
  assert (len(train), len(test)) == (20, 6)
  assert [test[i]['label'] for i in range(6)] == [0, 0, 1, 1, 3, 3]
  assert test.describe(5) == str(image_folder / 'test' / 'fox' / '1.jpg')
  assert test[5]['image'] == (image_folder / 'test/fox/1.jpg').read_bytes()


def test_splits_can_be_cut_and_added(make_data, image_folder):
  data = make_data(name='folder', dir=str(image_folder))
  assert len(open_source(data, 'train[:50%]+test')) == 16


@pytest.mark.parametrize('directory', ['', '/no/such/place'])
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
