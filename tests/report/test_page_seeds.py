"""Which runs are seeds of one model."""

from vmoe_robust.report import page


def test_fine_tuned_seeds_start_from_weights_of_their_own_seed(save_run):
  def tuned(name, start, seed):
    return save_run(
      name, [0, 1, 2, 9], weights__checksum=name, asked__config__seed=seed,
      asked__config__init_from=start,
    )  # fmt: skip

  first = tuned('a', '/x/base_seed0/checkpoints/100', 0)
  second = tuned('b', '/x/base_seed10/checkpoints/100', 1)
  assert 'Over 2 seeds, a and the like' in page.compare(first, second).html
  for number, start in enumerate(
    ('/x/other_seed1/checkpoints/100', '/x/base_seed1/checkpoints/50', '')
  ):
    other = tuned(f'other{number}', start, 1)
    assert 'Over 2 seeds' not in page.compare(first, other).html


def test_a_copy_of_a_seed_counts_once_and_is_named(save_run):
  runs = [
    save_run(name, [0, 1, 2, 9], weights__checksum=str(seed))
    for name, seed in (('a', 0), ('copy', 0), ('b', 1))
  ]
  found = page.compare(*runs)
  assert 'Over 2 seeds, a and the like' in found.html
  assert found.problems == [
    'copy in the mean over seeds, for its weights are those of a'
  ]
  assert page.compare(*runs[:2]).problems == []  # no seeds at all
