import pytest

from vmoe_robust.report.page.scales import scale


@pytest.mark.parametrize(
  ('values', 'low', 'high'),
  [([0, 0], 0, 0.1), ([1, 1], 0.9, 1), ([0.5], 0.45, 0.55), ([], 0, 1)],
)
def test_an_axis_of_shares_has_no_other_numbers(values, low, high):
  found = scale(values, 0, 100, is_rate=True)
  assert (found.low, found.high) == pytest.approx((low, high))


def test_differences_that_are_all_alike_are_on_their_axis():
  found = scale([-0.04], 0, 100, is_rate=True)  # of results of older versions
  assert found.low <= -0.04 < found.high
  assert scale([0], 0, 100).low < 0


@pytest.mark.parametrize(
  ('values', 'texts'),
  [
    ([0, 1], ['0', '0.25', '0.5', '0.75', '1']),
    ([10**6, 10**6 + 1000], ['1e+06', '1.00025e+06', '1.0005e+06']),
    ([0.9999, 1], ['0.9999', '0.999925', '0.99995', '0.999975', '1']),
  ],
)
def test_ticks_say_the_numbers_at_which_they_are(values, texts):
  found = scale(values, 0, 100).ticks
  assert [text for _, text in found][: len(texts)] == texts
  assert [float(text) for _, text in found] == pytest.approx(
    [value for value, _ in found], rel=1e-9
  )
