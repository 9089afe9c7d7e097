"""The page of documentation that an experiment writes."""

import dataclasses

from tests.experiment.test_figures import difference, part_of, row
from vmoe_robust.experiment.accuracies import attacked
from vmoe_robust.experiment.markdown import markdown
from vmoe_robust.experiment.states import State
from vmoe_robust.experiment.usage import Usage
from vmoe_robust.files import write_json
from vmoe_robust.report.results import read_results


def test_tables_of_what_was_found(tmp_path):
  parts = [part_of(tmp_path, seed, 0.5) for seed in (0, 1)]
  for part in parts:
    found = dict(read_results(part.folder))
    found['weights'] = {'parameters': 1234, 'flops_per_image': 5.0 + part.seed}
    found['software'] = {'jax': f'0.{part.seed}'}
    found['hardware'] = {'kind': 'cpu'}
    write_json(part.folder / 'results.json', found)
  states = {part.name: State('finished') for part in parts}
  usage = {
    parts[0].name: Usage(9.0, 10.0, 2**30, None),
    parts[1].name: Usage(9.0, 20.0, 2**31, None),
  }
  rows = [
    row('moe', 'aa', 'clean', 0, 1.0, 1.0),
    row('moe', 'aa', 'aa linf 16/255', 16 / 255, 0.5, 0.7),
    row('dense', 'aa', 'clean', 0, 0.75),
  ]
  pairs = [difference('moe', 'dense', 'aa', 'aa linf 16/255', -0.05)]
  about = {'name': 'twins', 'command': 'python -m x'}
  found, left_out = attacked(parts, states)
  assert not left_out
  text = markdown(about, parts, states, found, usage, rows, pairs)
  assert text.startswith('# twins\n\n    python -m x\n\nkind cpu.\n\n')
  assert '- jax: 0.0 in 1, 0.1 in 1 of 2 results\n' in text
  assert '| run | clean | aa linf 16/255 |\n|---|--:|--:|' in text
  assert '| moe | 100.0%, 2 seeds | 60.0% (0.0 to 100.0)' in text
  assert '| dense | 75.0% (0.0 to 100.0) |  |' in text
  assert '| moe | aa | aa linf 16/255 | 0, 1 | 50.0%, 70.0% |' in text
  assert '| dense | aa | clean | 0 | 75.0% |' in text
  assert 'over images). On 4 images.' in text and '## Warnings' not in text
  assert '| moe | dense | aa | aa linf 16/255 | 45.0% | 50.0% | -5.0 |' in text
  # FLOPs differ where programs of two versions count them.
  assert '| moe | 1,234 | 5 or 6 | 15 | 2.00 GiB |' in text


def test_warnings_and_numbers_of_images_are_told(tmp_path):
  part = part_of(tmp_path, 0, 0.5)
  path = part.folder / 'results.json'
  found = dict(read_results(part.folder), warnings=['gradients may mislead'])
  empty = dict.fromkeys(('weights', 'software', 'hardware'), {})
  write_json(path, found | empty)
  states = {part.name: State('finished')}
  more = row('dense', 'pgd', 'pgd linf 51/255', 0.2, 0.5)
  more['seeds'][0]['accuracy'] |= {'n': 10_000}
  rows = [row('dense', 'aa', 'clean', 0, 0.75), more]
  study = dataclasses.replace(part, name='study', mode='study')
  usage = {
    part.name: Usage(9.0, 100.0, 2**30, None),
    'study': Usage(9.0, 300.0, 2**30, None),
  }
  states['study'] = State('finished')
  about = {'name': 'twins', 'command': 'python -m x'}
  found, _ = attacked([part], states)
  text = markdown(about, [part, study], states, found, usage, rows, [])
  assert f'## Warnings\n\n- {part.name}: gradients may mislead\n' in text
  assert '| dense | 75.0% (0.0 to 100.0), 4 images | 50.0% ' in text
  assert ', 10,000 images |' in text and 'On 4 images' not in text
  asked = part.asked
  assert f'| {asked} (attack) | {asked} (study) | memory |' in text
  assert '| 100 | 300 | 1.00 GiB |' in text


def test_what_is_left_out_is_told(tmp_path):
  parts = [part_of(tmp_path, seed, 0.5) for seed in (0, 1)]
  states = {part.name: State('finished') for part in parts}
  path = parts[0].folder / 'results.json'
  empty = dict.fromkeys(('weights', 'software', 'hardware'), {})
  write_json(path, dict(read_results(parts[0].folder)) | empty)
  (parts[1].folder / 'results.json').write_text('{')
  found, _ = attacked(parts, states)
  usage = {part.name: Usage(9.0, 10.0, 2**30, None) for part in parts}
  pair = difference('moe', 'dense', 'aa', 'aa linf 16/255', -0.05)
  missing = ['seed 1: moe_seed1/attacks/aa is failed']
  none = dict(pair, condition=None, seeds=[], difference=None)
  about = {'name': 'twins', 'command': 'python -m x'}
  for rows in ([pair | dict(missing=missing)], [none | dict(missing=missing)]):
    text = markdown(about, parts, states, found, usage, [], rows)
    assert (
      'Not compared:\n\n- moe - dense, aa, seed 1: moe_seed1/attacks/aa is f'
    ) in text
    assert text.count('## Pairs of runs') == 1
    assert (
      'Left out, for their files are damaged, or of other examples than those '
      'of other seeds: moe_seed1/attacks/aa.' in text
    )


def test_nothing_is_finished_yet(tmp_path):
  part = part_of(tmp_path, 0, 0.5)
  about = {'name': 'twins', 'command': 'python -m x'}
  states = {part.name: State('cut short')}
  usage = {part.name: Usage(9.0, 10.0, 2**30, None)}  # of a beginning
  text = markdown(about, [part], states, [], usage, [], [])
  assert 'Nothing is finished yet.' in text and 'Pairs' not in text
  assert '10' not in text


def test_attacks_that_are_called_alike_are_told_apart(tmp_path):
  """Two entries of the experiment may differ in steps or images alone."""
  rows = [
    row('moe', attack, 'pgd linf 25.5/255', 0.1, value)
    for attack, value in (('short', 0.75), ('long', 0.5))
  ]
  part = part_of(tmp_path, 0, 0.5)
  about = {'name': 'twins', 'command': 'python -m x'}
  states = {part.name: State('finished')}
  text = markdown(about, [part], states, [], {}, rows, [])
  assert 'pgd linf 25.5/255 (short) | pgd linf 25.5/255 (long) |' in text
  assert '|  | 75.0% (0.0 to 100.0) | 50.0% (0.0 to 100.0) |' in text


def test_seeds_are_of_the_same_examples(tmp_path):
  """The first that is known says which; others are left out, and said to be."""
  parts = [part_of(tmp_path, seed, 0.5) for seed in range(5)]
  states = {part.name: State('finished') for part in parts}
  for part, known in zip(parts, (None, 'a', 'b', 'a', None), strict=True):
    results = read_results(part.folder)
    results['data']['fingerprint'] = known
    empty = dict.fromkeys(('weights', 'software', 'hardware'), {})
    write_json(part.folder / 'results.json', dict(results) | empty)
  found, left_out = attacked(parts, states)
  assert [part.seed for part, _ in found] == [0, 1, 3, 4]
  [(name, why)] = left_out.items()
  assert name == parts[2].name and why.endswith(parts[1].name)
