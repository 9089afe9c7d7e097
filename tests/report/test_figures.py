import json

import numpy as np
import pytest
from PIL import Image

from vmoe_robust.report import figures
from vmoe_robust.report.examples import ExamplePictures
from vmoe_robust.report.figures import (
  Bar,
  BarPlot,
  Line,
  LinePlot,
  Matrix,
)
from vmoe_robust.report.labels import apart


def line(label, panel=''):
  return Line(label, [0, 1], [0.9, 0.5], [0.85, 0.4], [0.93, 0.6], panel)


@pytest.mark.parametrize('panels', [1, 3])
def test_lines_are_drawn_and_kept_as_data(tmp_path, panels):
  lines = [line(f'$x_{{{i}', panel=f'cost in $ {i % panels}') for i in range(4)]
  plot = LinePlot('curve', 'what $ buys', 'eps', 'accuracy', lines)
  plot.draw(tmp_path / 'curve.png')
  picture = np.asarray(Image.open(tmp_path / 'curve.png').convert('L'))
  assert picture.shape[0] > 300 and (picture < 100).mean() > 0.005
  plot.write_data(tmp_path / plot.data_name)
  found = json.loads((tmp_path / 'curve.json').read_text())
  assert found['lines'][1]['low'] == [0.85, 0.4] and len(found['lines']) == 4
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    *('curve.json', 'curve.png', 'curve.svg')
  ]


def test_no_lines_are_an_empty_picture(tmp_path):
  LinePlot('none', 'none', 'eps', 'accuracy', []).draw(tmp_path / 'none.png')
  assert (tmp_path / 'none.svg').exists()


def test_a_long_name_is_not_cut(tmp_path):
  lines = [line('random router, mean of draws'), line('learned router')]
  plot = LinePlot('long', 'Controls', 'eps (1/255)', 'accuracy', lines)
  plot.draw(tmp_path / 'long.png')
  with Image.open(tmp_path / 'long.png') as picture:
    dark = np.asarray(picture.convert('L')) < 200
  assert not dark[:, -3:].any() and dark[:, -60:].any()


def test_each_line_is_named_where_it_ends(tmp_path):
  nan = float('nan')
  lines = [line('first'), line('second'), line('third', 'other panel')]
  lines.append(Line('nowhere', [0, 1], [nan] * 2, [nan] * 2, [nan] * 2))
  LinePlot('named', 'lines', 'eps', 'accuracy', lines).draw(
    tmp_path / 'named.png'
  )
  svg = (tmp_path / 'named.svg').read_text()
  for one in lines:
    assert svg.count(f'<!-- {one.label} -->') == 1


def test_a_name_points_at_the_last_point_of_its_line(tmp_path, monkeypatch):
  kept = []
  monkeypatch.setattr(figures, 'save', lambda figure, path: kept.append(figure))
  lines = [line('a'), Line('b', [0, 2], [0.2, 0.4], [0.1, 0.3], [0.3, 0.5])]
  LinePlot('p', 'p', 'x', 'y', lines).draw(tmp_path / 'p.png')
  kept[0].savefig(tmp_path / 'p.png')
  [axis] = kept[0].axes
  ends = [
    (axis.transData - axis.transAxes).transform(end)
    for end in ((1, 50), (2, 40))
  ]
  np.testing.assert_allclose([text.xy for text in axis.texts], ends, atol=1e-6)


@pytest.mark.parametrize('low', [0.4, float('nan')])
def test_a_picture_without_intervals_names_none(tmp_path, low):
  lines = [Line('one', [0, 1], [0.9, 0.5], [low] * 2, [low] * 2)]
  LinePlot('p', 'p', 'x', 'y', lines, note='a note').draw(tmp_path / 'p.png')
  svg = (tmp_path / 'p.svg').read_text()
  assert '<!-- a note -->' in svg
  assert ('95% intervals' in svg) == np.isfinite(low)


def test_names_that_meet_move_apart():
  assert apart([0.5, 0.1], 0, 1, 0.1) == [0.5, 0.1]  # those far apart stay
  np.testing.assert_allclose(apart([0.5, 0.5, 0.5], 0, 1, 0.1), [0.5, 0.6, 0.7])
  np.testing.assert_allclose(apart([1, 0.95, 0], 0, 1, 0.1), [1, 0.9, 0])
  np.testing.assert_allclose(apart([0, 0, 0], 0, 1, 0.4), [0, 0.4, 0.8])


@pytest.mark.parametrize(
  'plot',
  [
    BarPlot(
      *('shown', 'what $ buys', 'accuracy'),
      [
        Bar('a $', 0.4, 0.3, 0.5),
        Bar('b', 0.8, 0.7, 0.9, 'other'),
        Bar('a difference', -0.0001, -0.1, 0.1),
        Bar('a larger one', -0.49444, -0.6, -0.3),
      ],
    ),
    Matrix(*('shown', 'who', 'to', 'from'), ['a', 'b'], ['c'], [[0.1, 0.9]]),
  ],
  ids=lambda plot: type(plot).__name__,
)
def test_numbers_are_drawn_and_kept_as_data(tmp_path, plot):
  plot.draw(tmp_path / 'shown.png')
  picture = np.asarray(Image.open(tmp_path / 'shown.png').convert('L'))
  assert picture.std() > 10
  # The numbers are in the picture as text.
  svg = (tmp_path / 'shown.svg').read_text()
  bars = isinstance(plot, BarPlot)
  for number in (
    ('40.0%', '80.0%', '-0.01%', '-49.4%') if bars else ('10.0', '90.0')
  ):
    assert f'>{number}<' in svg or f'<!-- {number} -->' in svg
  plot.write_data(tmp_path / plot.data_name)
  assert json.loads((tmp_path / 'shown.json').read_text())['name'] == 'shown'


@pytest.mark.parametrize('channels', [1, 3])
def test_examples_are_drawn_with_their_difference(tmp_path, channels):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(3, 8, 8, channels)).astype(np.float32)
  x_adv = np.clip(images + 0.05, 0, 1)
  names = ['a $^ sign', '2', '0']
  shown = ExamplePictures('shown', 'three', images, x_adv, names, names[::-1])
  shown.draw(tmp_path / 'shown.png')
  assert np.asarray(Image.open(tmp_path / 'shown.png')).std() > 10
  shown.write_data(tmp_path / shown.data_name)
  with np.load(tmp_path / 'shown.npz') as file:
    np.testing.assert_array_equal(file['x_adv'], x_adv)
    assert file['before'].tolist() == names


def test_what_is_not_known_is_not_drawn_as_exact(tmp_path):
  known = {'value': 0.5, 'interval': (0.25, 0.75), 'n': 4}
  single = {'value': 0.5, 'interval': None, 'n': 1}
  lost = {'value': None, 'interval': None, 'n': 4}
  line = Line.of('a', [0, 1, 2], [known, single, lost], 'p', times=100)
  assert (line.y[:2], line.low[0], line.high[0]) == ([50, 50], 25, 75)
  assert np.isnan([line.y[2], *line.low[1:], *line.high[1:]]).all()
  bars = [Bar.of(str(i), one) for i, one in enumerate((known, single, lost))]
  assert np.isnan([bars[1].low, bars[1].high, bars[2].value]).all()
  LinePlot('l', 'l', 'x', 'y', [line]).draw(tmp_path / 'l.png')
  BarPlot('b', 'b', 'x', bars).draw(tmp_path / 'b.png')
  assert (tmp_path / 'b.svg').stat().st_size > 200
