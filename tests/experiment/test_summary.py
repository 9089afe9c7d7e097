"""What experiment.json keeps from one command to the next."""

import json

from vmoe_robust.config import ConfigDict
from vmoe_robust.experiment.summary import earlier, summary
from vmoe_robust.files import write_json
from vmoe_robust.report.page.experiment import SUMMARY


def described(**changes):
  empty = dict(runs=({'name': 'moe'},), seeds=(0,), comparisons=())
  return ConfigDict(empty | changes, convert_dict=False)


def test_what_another_experiment_found_is_not_taken(tmp_path):
  """Experiments may share a folder; a kill leaves none with others' numbers."""
  assert earlier(tmp_path, described(), 'one') == {}
  row = {'run': 'moe', 'attack': 'pgd'}
  found = summary(described(), (), {}, {}, accuracies=[row])
  write_json(tmp_path / SUMMARY, found | {'name': 'one', 'command': ''})
  same = earlier(tmp_path, described(), 'one')
  assert same == dict(accuracies=[row], measures=[], relations=[], figures=[])
  assert earlier(tmp_path, described(), 'other') == {}
  assert earlier(tmp_path, described(seeds=(0, 1)), 'one') == {}
  old = json.loads((tmp_path / SUMMARY).read_text())
  del old['description']
  write_json(tmp_path / SUMMARY, old)
  assert earlier(tmp_path, described(), 'one') == {}
