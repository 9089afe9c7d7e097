"""What is to be known of data before a number on them is believed."""

import os

import pytest

from tests.evaluate.conftest import InMemory
from vmoe_robust import config as config_lib
from vmoe_robust.data import hold_out, open_source
from vmoe_robust.evaluate.cautions import cautions


def data_of(**fields):
  config = config_lib.default()
  config.data.update(fields)
  return config


def warned(judged, trained, source=None):
  """What is said of examples, of fields of a run that made the weights."""
  source = source or open_source(judged.data, judged.data.split)
  return cautions(judged, trained, source, source)


def test_examples_that_were_trained_on_are_told():
  judged = lambda split: data_of(name='digits', split=split)
  trained = data_of(name='digits', split='train')
  assert not warned(judged('test'), trained)
  assert not warned(judged('train'), None)
  assert not warned(judged('train'), data_of(name='other', split='train'))
  (text,) = warned(judged('test+train[:100]'), trained)
  assert text.startswith('100 of the 460 examples of')
  trained.data.validation = 0.1  # as a run holds them out
  kept, _ = hold_out(open_source(trained.data, 'train'), 0.1)
  (text,) = warned(judged('train'), trained)
  assert text.startswith(f'{len(kept):,} of the 1,437 examples')


def test_images_of_0_and_1_in_whole_numbers_are_told():
  source, judged = InMemory(40), data_of(image_size=8)
  assert not warned(judged, None, source)
  source.images //= 128
  (text,) = warned(judged, None, source)
  assert text.startswith('all pixels are at most 0.0039 of white')
  source.images[20] = 2  # one of those that are looked at
  assert not warned(judged, None, source)


def test_x_adv_that_may_be_no_images_are_told():
  judged = data_of(name='digits', split='test')
  judged.mode, judged.attack.name = 'study', 'paper'
  judged.study.name = 'jacobian'  # attacks nothing
  assert not warned(judged, None)
  judged.study.name = 'routing_change'
  (text,) = warned(judged, None)
  assert "name='paper' neither projects nor clips" in text
  judged.attack.name = 'pgd'
  assert not warned(judged, None)


class _Images(InMemory):
  lengths = {'train': 9}  # noqa: RUF012


@pytest.mark.parametrize('spelt', ['{}', '{}/', 'images', './images/../images'])
def test_a_folder_is_itself_however_it_is_spelt(tmp_path, monkeypatch, spelt):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'others').mkdir()
  monkeypatch.chdir(tmp_path)
  folder = lambda path: data_of(name='folder', dir=path, split='train')
  there = folder(str(tmp_path / 'images'))
  assert warned(folder(spelt.format(there.data.dir)), there, _Images(9))
  assert not warned(folder('others'), there, _Images(9))
  os.symlink('images', 'link')
  assert warned(folder('link'), there, _Images(9))


def test_a_version_makes_no_other_data():
  named = lambda name: data_of(name=name, split='train')
  for version in (':1.0.0', '/1.0.0', ''):
    assert warned(named(f'pets{version}'), named('pets'), _Images(9))
  assert not warned(named('pets/large'), named('pets'), _Images(9))
