import logging

import numpy as np
import pytest
from PIL import Image

from vmoe_robust.report import plots


def results():
  one = lambda eps, accuracy: {
    'eps': eps,
    'robust_accuracy': accuracy,
    'robust_accuracy_interval': (accuracy - 0.05, accuracy + 0.05),
    'robust_after': {'apgd_ce': accuracy + 0.02, 'square': accuracy},
  }
  return {
    'clean_accuracy': 0.9,
    'clean_accuracy_interval': (0.85, 0.93),
    'split': 'digits test',
    'examples': 360,
    'attacks': {'autoattack_linf': {'0.1': one(0.1, 0.5), '0.2': one(0.2, 0)}},
  }


def test_curves_are_drawn(tmp_path):
  path = tmp_path / 'curve.png'
  plots.robustness(path, results())
  picture = np.asarray(Image.open(path).convert('L'))
  assert picture.shape[0] > 300 and (picture < 100).mean() > 0.005
  assert not path.with_name('curve.png.tmp').exists()


def test_examples_are_drawn_with_their_difference(tmp_path):
  rng = np.random.default_rng(0)
  for channels in (1, 3):
    images = rng.uniform(size=(3, 8, 8, channels)).astype(np.float32)
    x_adv = np.clip(images + 0.05, 0, 1)
    path = tmp_path / f'{channels}.png'
    plots.examples(path, images, x_adv, [('1', '7'), ('2', '3'), ('0', '6')])
    assert np.asarray(Image.open(path)).std() > 10


@pytest.mark.parametrize(
  'name', ['$x_$', '$\\frac{', 'a_$', '\\', 'Ä', '猫', '']
)
def test_any_name_is_drawn(tmp_path, caplog, name):
  images = np.full((1, 8, 8, 1), 0.5, np.float32)
  plots.examples(tmp_path / 'a.png', images, images, [(name, name)])
  plots.robustness(tmp_path / 'b.png', results() | {'split': name})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'b.png']
  assert not caplog.records


def test_values_that_are_not_finite_are_drawn(tmp_path, caplog):
  images = np.full((2, 8, 8, 3), 0.5, np.float32)
  x_adv = images.copy()
  x_adv[0, 0, 0] = np.nan
  plots.examples(tmp_path / 'a.png', images, x_adv, [('1', '7')] * 2)
  plots.robustness(tmp_path / 'b.png', results() | {'clean_accuracy': np.nan})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'b.png']
  assert not caplog.records


def test_a_picture_that_fails_is_one_warning_that_names_the_file(
  tmp_path, caplog
):
  (tmp_path / 'file').write_text('')
  for path, given in (
    (tmp_path / 'curve.png', {}),
    (tmp_path / 'file' / 'curve.png', results()),
  ):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      plots.robustness(path, given)
    (record,) = caplog.records
    assert f'{path} was not drawn' in record.getMessage()
  assert [p.name for p in tmp_path.iterdir()] == ['file']
