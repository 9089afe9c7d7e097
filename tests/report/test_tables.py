from vmoe_robust.report.page import comparison
from vmoe_robust.report.page.runs import Problems, find
from vmoe_robust.report.page.tables import fields, points
from vmoe_robust.report.table import points as points_of_text

STEP = 8 / 255


def test_points_keep_their_side_of_zero_and_none_is_no_negative_zero():
  difference = {'value': -1e-17, 'interval': [-0.0003, 0.0002], 'n': 9}
  assert points(difference).text == '+0.0 [-0.03, +0.02]'
  assert points_of_text(difference) == '+0.0 (-0.03 to +0.02)'


def test_points_are_saved_as_points():
  cell = points({'value': 0.25, 'interval': [-0.5, 0.75], 'n': 9})
  assert cell.text == '+25.0 [-50.0, +75.0]'
  assert (cell.exact, cell.low, cell.high, cell.n) == ('25.0', -50.0, 75.0, 9)
  cell = points({'value': 0.25, 'interval': None, 'n': 1})
  assert (cell.text, cell.exact, cell.low) == ('+25.0', '25.0', None)


def test_a_difference_of_no_images_is_not_known():
  nothing = {'value': None, 'interval': None, 'n': 0}
  assert points(nothing).text == points_of_text(nothing) == '-'


def test_other_values_look_otherwise_and_are_saved_whole():
  texts = lambda *values: [cell.text for cell in fields(values)]
  assert texts(STEP, 0.5) == ['0.0313725', '0.5']
  assert texts(STEP, 0.0313725) == [repr(STEP), '0.0313725']
  assert texts([STEP], [0.0313725]) == [f'[{STEP!r}]', '[0.0313725]']
  assert texts('adam', None, True, 3) == ["'adam'", 'None', 'True', '3']
  assert [c.exact for c in fields([STEP, [STEP, 1], 'adam'])] == [
    repr(STEP), f'[{STEP!r}, 1]', None
  ]  # fmt: skip


def test_fields_that_differ_little_are_told_apart(save_run):
  config = {'attack': {'step_size': STEP}, 'only': 1}
  a = save_run('a', [0, 1, 2, 9], asked__config=config)
  b = save_run(
    'b', [0, 1, 9, 9], asked__config={'attack': {'step_size': 0.0313725}},
  )  # fmt: skip
  table = comparison.differing(find([a, b], Problems()))
  assert [[cell.text for cell in row] for row in table.rows] == [
    ['config.attack.step_size', repr(STEP), '0.0313725'],
    ['config.only', '1', '-'],
  ]
  assert [cell.value for cell in table.rows[0]] == [None, STEP, 0.0313725]


def test_the_size_of_a_batch_counts_where_images_share_experts(save_run):
  def note(experts, name):
    runs = [
      save_run(
        f'{name}{size}', [0, 1, 2, 9], weights__checksum=f'{name}{size}',
        asked__experts=experts, asked__settings={'batch_size': size},
      )
      for size in (4, 8)
    ]  # fmt: skip
    (table,) = comparison.pairs(find(runs, Problems()), Problems())
    return table.note

  assert 'otherwise: batch_size 4 and 8.' in note('capacity', 'a')
  assert 'otherwise' not in note('dropless', 'b')
