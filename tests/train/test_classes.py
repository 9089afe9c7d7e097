"""What becomes of the classes of a run: its data's, another run's, an old's."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.evaluate.conftest import InMemory, small_config
from tests.train.test_init_from import config_of, report, weights_of
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust.checkpoint import flat
from vmoe_robust.config import UserError
from vmoe_robust.train import start
from vmoe_robust.train.init_from import start_from

HEAD = ('head/kernel', 'head/bias')


class Named:
  """A split with one image of every class."""

  multi_label, channels = False, 3
  fingerprint, lengths = 'of a test', {}

  def __init__(self, *names):
    self.class_names, self.num_classes = names, len(names)

  def __len__(self):
    return self.num_classes

  def __getitem__(self, i):
    return dict(image=np.zeros((8, 8, 3), np.uint8), label=i)

  def describe(self, i):
    return self.class_names[i]


def of_folder(**fields):
  config = config_of(**fields)
  config.data.update(name='folder', dir='/images')
  return config


def test_the_training_split_numbers_the_classes():
  config = of_folder(**{'model.num_classes': 0})
  known, there = Named('apple', 'frog', 'whale'), Named('whale', 'frog')
  config, held_out = start.resolve(config, known, there)
  assert config.model.num_classes == 3
  assert held_out.class_names == known.class_names
  assert [held_out[i]['label'] for i in range(2)] == [2, 1]
  with pytest.raises(UserError, match="'zinnia', and lacks 'apple', 'whale'"):
    start.resolve(config, known, Named('frog', 'zinnia'))


def saved_run(workdir, config, names, seed=0):
  """A run at step 1; returns its weights."""
  params = weights_of(config, seed)
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  checkpoints.save(1, {'params': params}, {'data': None})
  checkpoints.close()
  checkpoint.save_config(workdir, config, names)
  return flat(params)


def test_another_order_of_classes_is_another_run(tmp_path):
  config = of_folder(**{'model.num_classes': 2})
  saved_run(tmp_path, config, ('cat', 'dog'))
  start.check_same_run(config, tmp_path, ('cat', 'dog'))
  for names in (('dog', 'cat'), ('cat', 'eel')):
    with pytest.raises(UserError, match='has a run on 2 other classes'):
      start.check_same_run(config, tmp_path, names)


def test_what_selects_is_measured_in_one_way_by_all_starts(tmp_path):
  """Not only by the last one, which may have selected nothing."""
  name = 'robust_accuracy/0.05'

  def run(step, attack_steps, best):
    config = of_folder(**{'model.num_classes': 2, 'data.validation': 0.25})
    config.attack.update(dict(name='pgd', eps=(0.05,), every_steps=2))
    config.attack.steps, config.save.best = attack_steps, best
    start.check_same_run(config, tmp_path, ())
    checkpoint.save_config(tmp_path, config)
    checkpoints = checkpoint.Checkpoints(tmp_path, config.save)
    trees = {'params': {'kernel': np.ones(3, np.float32)}}
    measured = {name: 1 / (1 + attack_steps)}
    checkpoints.save(step, trees, {'data': None}, measured, now=True)
    checkpoints.close()

  run(2, 1, '')
  run(4, 40, '')  # nothing is selected: any attack will do
  with pytest.raises(UserError, match=r'config.attack.steps=40 \(was 1\), by'):
    run(6, 40, name)
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  run(6, 40, name)


def test_fields_that_training_does_not_read_change_no_run(tmp_path):
  """Another version may have another default of a study's field."""
  config = of_folder(**{'model.num_classes': 2})
  saved_run(tmp_path, config, ('cat', 'dog'))
  config.study.routing_attacks.lambdas = (7.0,)
  start.check_same_run(config, tmp_path, ('cat', 'dog'))


def test_weights_to_start_from_are_the_same_however_they_are_spelt(
  tmp_path, monkeypatch
):
  config = of_folder(**{'model.num_classes': 2})
  config.init_from = str(tmp_path / 'dense')
  names = ('cat', 'dog')
  saved_run(tmp_path / 'run', config, names)
  monkeypatch.chdir(tmp_path)
  for same in (f'{tmp_path}/dense/', 'dense', './x/../dense'):
    config.init_from = same
    start.check_same_run(config, tmp_path / 'run', names)
  for other in ('', 'wide', 'gs://bucket/dense'):
    config.init_from = other
    with pytest.raises(UserError, match='other settings, not config.init_from'):
      start.check_same_run(config, tmp_path / 'run', names)
  config.init_from = 'dense'
  config.train.steps += 1
  with pytest.raises(
    UserError, match=r'--config.init_from=\S+ to train on from'
  ):
    start.check_same_run(config, tmp_path / 'run', names)


def test_an_old_run_on_folders_of_numbers_does_not_resume(tmp_path):
  config = of_folder(**{'model.num_classes': 12})
  saved_run(tmp_path, config, ())
  with pytest.raises(UserError, match='have no saved names.*rename the folder'):
    start.check_same_run(config, tmp_path, tuple(map(str, range(12))))
  text = tuple(sorted(f'c{i}' for i in range(12)))
  start.check_same_run(config, tmp_path, text)
  start.check_same_run(config, tmp_path, tuple(map(str, range(10))))
  # Other data sets have always been numbered as they say.
  config.data.update(name='cifar100', dir='')
  checkpoint.save_config(tmp_path, config)
  start.check_same_run(config, tmp_path, tuple(map(str, range(12))))


THERE = ('apple', 'frog', 'whale')


@pytest.mark.parametrize(
  ('there', 'names', 'order', 'said'),
  [
    (THERE, THERE, (0, 1, 2), 'kept: its classes are the same'),
    (THERE, ('whale', 'apple', 'frog'), (2, 0, 1), 'kept in another order'),
    (THERE, ('frog', 'whale', 'zinnia'), None, "1 of the 3 .* 'zinnia'"),
    (THERE, ('frog', 'whale'), None, 'other classes besides'),
    ((), THERE, (0, 1, 2), 'names could not be compared'),
    (('0', '1', '2'), THERE, (0, 1, 2), 'names could not be compared'),
    (('1', '2', '3'), ('0', '1', '2'), None, "1 of the 3 .* '0'"),
  ],
)
def test_a_head_is_kept_by_its_names(
  tmp_path, capsys, there, names, order, said
):
  first = of_folder(**{'model.num_classes': len(there) or 3})
  before = saved_run(tmp_path / 'first', first, there)
  config = of_folder(**{'model.num_classes': len(names)})
  config.init_from = str(tmp_path / 'first')
  fresh = weights_of(config, 1)
  found = flat(start_from(config, fresh, tmp_path, names))
  fresh = flat(fresh)
  for name, value in found.items():
    expected = before[name]
    if name in HEAD:
      expected = fresh[name] if order is None else expected[..., list(order)]
    np.testing.assert_array_equal(value, expected, err_msg=name)
  how = {report(tmp_path)['weights'][name]['how'] for name in HEAD}
  same = order == tuple(range(3))
  assert how == {'loaded' if same else 'reordered' if order else 'fresh'}
  (line,) = [x for x in capsys.readouterr().out.splitlines() if 'The head' in x]
  assert re.search(said, line)


def test_a_permuted_head_is_read_on_any_mesh(tmp_path):
  first = of_folder(**{'model.num_classes': 4})
  before = saved_run(tmp_path / 'first', first, tuple('abcd'))
  config = of_folder(**{'model.num_classes': 4})
  config.init_from = str(tmp_path / 'first')
  fresh = weights_of(config, 1, (2, 2, 2))
  found = flat(start_from(config, fresh, tmp_path, tuple('dbca')))
  for name in HEAD:
    expected = np.asarray(before[name])[..., [3, 1, 2, 0]]
    np.testing.assert_array_equal(found[name], expected)
    assert found[name].sharding == flat(fresh)[name].sharding


def test_a_head_of_an_old_run_on_folders_of_numbers_is_refused(tmp_path):
  numbers = tuple(map(str, range(12)))
  first = of_folder(**{'model.num_classes': 12})
  saved_run(tmp_path / 'first', first, ())
  config = of_folder(**{'model.num_classes': 12})
  config.init_from = str(tmp_path / 'first')
  with pytest.raises(UserError, match='config.init_from=.*have no saved names'):
    start_from(config, weights_of(config, 1), tmp_path, numbers)
  assert not (tmp_path / 'init_from.json').exists()
  config.init_from_except = ('head',)
  start_from(config, weights_of(config, 1), tmp_path, numbers)
  listed = json.loads((tmp_path / 'init_from.json').read_text())
  assert listed['weights']['head/kernel']['how'] == 'fresh'


def test_test_images_that_are_trained_on_are_told(caplog):
  config = config_lib.default()
  config.data.update(split='train+test[:9]', eval_split='test')
  _, splits = start.open_splits(config)
  (text,) = splits.warnings
  assert "9 of the 360 examples of 'test' are of" in text
  assert text in caplog.text
  config.data.split = 'train'
  assert not start.open_splits(config)[1].warnings


def test_images_of_0_and_1_in_whole_numbers_are_told(monkeypatch, caplog):
  source = InMemory(40)
  source.images //= 128
  source.lengths = {'train': 30, 'test': 10}
  monkeypatch.setattr(start, 'open_source', lambda *_: source)
  config = small_config()
  (text,) = start.open_splits(config)[1].warnings
  assert 'nearly black' in text and caplog.text.count(text) == 1


def test_one_class_alone_is_not_trained_on():
  config = of_folder(**{'model.num_classes': 0})
  one = Named('apple')
  with pytest.raises(UserError, match="one class, 'apple', which every model"):
    start.resolve(config, one, one)
