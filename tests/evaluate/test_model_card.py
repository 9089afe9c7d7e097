"""The card beside exported weights says what runs measured, and no more."""

import hashlib
import json
import re

import numpy as np
import pytest
import yaml

from tests.checkpoint.test_export import RELEASED, run_of
from tests.report.conftest import results, save_run
from vmoe_robust.checkpoint import fingerprint
from vmoe_robust.checkpoint.__main__ import main

__all__ = ['save_run']
SPARSE = dict(experts=4, moe_every=2, channels=3)


@pytest.fixture
def run(tmp_path):
  """A run of a small V-MoE; a function that saves results of its weights."""
  run_of(tmp_path / 'run', **SPARSE)
  return tmp_path / 'run'


def exported(source, out, *more):
  """The card's front matter and text."""
  assert main(['export', str(source), str(out), *map(str, more)]) == 0
  _, front, text = out.with_suffix('.md').read_text().split('---\n', 2)
  return yaml.safe_load(front), text


def fields_of(text):
  """First and second cells of the tables of two columns."""
  return dict(re.findall(r'^\| ([^|\n]+) \| ([^|\n]+) \|$', text, re.M))


def test_numbers_are_those_of_the_results(run, save_run, tmp_path, capsys):
  checksum = fingerprint(run, 1)
  for name, after, more in (
    ('run/attacks/pgd', [0, 1, 2, 9], {}),
    ('elsewhere', [0, 9, 9, 9], {'asked__experts': 'capacity'}),
    ('other', [0, 1, 2, 3], {'weights__checksum': 'other'}),
  ):
    fields = dict(weights__checksum=checksum, warnings=['a | b\nc']) | more
    save_run(name, after, asked__settings__steps=40, **fields)
  others = ['--results', tmp_path / 'elsewhere', tmp_path / 'other']
  front, text = exported(run, tmp_path / 'moe.safetensors', *others)
  (entry,) = front['model-index']
  (measured,) = entry['results']
  assert entry['name'] == 'moe'
  assert measured['dataset'] == {'type': 'digits', 'name': 'digits test'}
  found = [(m['name'], m['value']) for m in measured['metrics']]
  assert found == [
    ('Clean accuracy', 1.0),
    ('Accuracy under pgd of 40 steps, linf 16/255', 0.75),
    ('Clean accuracy, experts with capacity', 1.0),
    (
      'Accuracy under pgd of 40 steps, experts with capacity, linf 16/255',
      0.25,
    ),
  ]
  args = measured['metrics'][1]['args']
  assert args['images'] == 4 and args['eps'] == 16 / 255
  assert args['interval'] == pytest.approx([0.3006, 0.9544], abs=1e-4)
  assert (
    '| pgd of 40 steps | 75.0% | 30.1% to 95.4% | linf | 16/255 | 4 of digits '
    'test | pgd |'
  ) in text
  assert '| none, experts with capacity | 100.0% |' in text
  assert 'AutoAttack at its full length: not measured' in text
  assert 'a \\| b c' in text
  (line,) = capsys.readouterr().err.splitlines()
  assert 'not on the card: other judged other weights' in line


def test_it_says_what_the_model_is_and_how_it_is_loaded(
  run, tmp_path, monkeypatch
):
  out = tmp_path / 'moe.safetensors'
  front, text = exported(run, out)
  assert 'license' not in front and 'model-index' not in front
  assert {'v-moe', 'mixture-of-experts'} <= set(front['tags'])
  assert front['datasets'] == ['digits']
  assert 'Not measured: no attack on these weights' in text
  found = fields_of(text)
  assert found['experts'].startswith('4 in each of the sparse blocks 1, 1 a')
  digest = hashlib.sha256(out.read_bytes()).hexdigest()
  assert found['SHA-256 of moe.safetensors'] == digest
  assert found['the checkpoint that results name'] == fingerprint(run, 1)
  assert found['exported from'] == 'run, step 1'
  assert found['length'].startswith('1 of 1,000 steps of ')
  assert str(tmp_path) not in text  # a card is sent around
  with open(out, 'rb') as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
  shapes = [a['shape'] for n, a in header.items() if n != '__metadata__']
  assert found['parameters'] == f'{sum(map(np.prod, shapes)):,}'
  code = re.search('```python\n(.*?)```', text, re.S)[1]
  monkeypatch.chdir(tmp_path)
  values = {'images': np.zeros((1, 8, 8, 3), np.uint8)}
  exec(code, values)
  assert values['logits'].shape == (1, 5)


def test_weights_of_others_have_no_record_of_training(tmp_path):
  front, text = exported(RELEASED, tmp_path / 'a"b.npz', '--license', 'mit')
  assert front['license'] == 'mit' and 'datasets' not in front
  assert 'v-moe' not in front['tags']
  assert 'Not recorded: the weights came without a configuration' in text
  assert fields_of(text)['experts'] == 'none, the model is dense'


def test_a_card_that_is_there_stays(run, tmp_path, capsys):
  out = tmp_path / 'moe.safetensors'
  out.with_suffix('.md').write_text('precious')
  assert main(['export', str(run), str(out)]) == 1
  assert 'the model card, exists' in capsys.readouterr().err
  assert not out.exists()
  exported(run, out, '--overwrite')


@pytest.mark.parametrize('named', ['missing', 'empty', 'note.txt'])
def test_named_results_have_to_be_there(run, tmp_path, capsys, named):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'note.txt').write_text('a note')
  out = tmp_path / 'moe.safetensors'
  assert main(
    ['export', str(run), str(out), '--results', str(tmp_path / named)]
  )
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith('error: --results: ') and named in line
  assert not out.exists() and not out.with_suffix('.md').exists()


def test_results_may_be_of_a_folder_of_runs(run, save_run, tmp_path):
  for name in 'one', 'two':
    fields = dict(weights__checksum=fingerprint(run, 1), asked__attack=name)
    save_run(f'many/{name}', [0, 1, 2, 9], **fields)
  out = tmp_path / 'moe.safetensors'
  _, text = exported(run, out, '--results', tmp_path / 'many')
  assert 'one' in text and 'two' in text


def test_weights_are_no_markdown(run, tmp_path, capsys):
  (tmp_path / 'notes.md').write_text('mine')
  out = str(tmp_path / 'notes.md')
  assert main(['export', str(run), out, '--overwrite']) == 1
  assert '.safetensors' in capsys.readouterr().err
  assert (tmp_path / 'notes.md').read_text() == 'mine'


def test_damaged_results_are_one_line(run, save_run, tmp_path, capsys):
  folder = save_run('run/attacks/pgd', [0, 1, 2, 9], rows=[3])
  save_run('run/attacks/odd', [0, 1, 2, 9], weights=[])
  folder = save_run(
    'run/attacks/half', [0, 1, 2, 9], weights__checksum=fingerprint(run, 1)
  )
  found = json.loads((folder / 'results.json').read_text())
  del found['rows'][0]['norm']
  (folder / 'results.json').write_text(json.dumps(found))
  front, _ = exported(run, tmp_path / 'moe.safetensors')
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3 and 'model-index' not in front


def test_of_many_radii_some_are_shown(run, save_run, tmp_path):
  [row] = results([0, 1, 2, 3], [0, 1, 2, 9], [0, 1, 2, 3])['rows']
  rows = [row | {'eps': level / 255} for level in range(1, 21)]
  fields = dict(weights__checksum=fingerprint(run, 1), rows=rows)
  save_run('run/attacks/pgd', [0, 1, 2, 9], **fields)
  front, text = exported(run, tmp_path / 'moe.safetensors')
  names = [m['name'] for m in front['model-index'][0]['results'][0]['metrics']]
  found = [name.split()[-1] for name in names[1:]]
  assert found == ['4/255', '8/255', '12/255', '16/255', '20/255']
  assert 'Of many radii some are shown: pgd.' in text
