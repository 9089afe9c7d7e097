"""From a description to parts: names, commands, refusals, states and costs."""

import ast
import dataclasses
import json
import pathlib
import shutil

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from tests.slow import all_slow_but
from vmoe_robust import checkpoint, experiment, files, presets
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial, job
from vmoe_robust.evaluate.combine import combine_saved
from vmoe_robust.experiment import cost
from vmoe_robust.experiment.parts import parts
from vmoe_robust.experiment.states import look, states
from vmoe_robust.experiment.summary import listing
from vmoe_robust.models import build, flops

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'configs/experiments'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
RUN = dict(name='a', base='configs/digits_vit.py')
PGD = dict(name='pgd', base='configs/attack_pgd.py')


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(ROOT)


def load(monkeypatch, *arguments):
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  monkeypatch.setattr('sys.argv', ['main', *arguments])
  values(['main', *arguments])
  return values.config


def of(name, monkeypatch):
  config = load(monkeypatch, f'--config={FOLDER / name}.py')
  config.seeds = (3,)
  return config


def test_the_experiments_are_there():
  assert set(NAMES) == {
    *('digits_paper', 'cifar10_paper', 'imagenet_cost', 'imagenet_routing'),
    *('imagenet_redundancy', 'imagenet_adversarial', 'digits_objectives'),
    'digits_recipes',
  }


@pytest.mark.parametrize(
  'name',
  all_slow_but(set(NAMES) - {'digits_paper', 'cifar10_paper'}, NAMES),
)
def test_is_listed_and_its_commands_say_all(name, monkeypatch, tmp_path):
  config = load(monkeypatch, f'--config={FOLDER / name}.py')
  seeds, config.seeds = config.seeds, (3,)
  every = parts(config, tmp_path)
  page = (ROOT / 'docs/experiments.md').read_text()
  [row] = [x for x in page.splitlines() if x.startswith(f'| `{name}` |')]
  assert row.endswith(f'| {len(seeds) * len(every)} |')
  assert [part.number for part in every] == list(range(1, len(every) + 1))
  lines = listing(every, states(every)).splitlines()
  assert len(lines) == len(every) + 3
  trained = {p.name: p.config for p in every if p.config.mode == 'train'}
  for part, line in zip(every, lines[2:], strict=False):
    assert part.name in line and 'not started' in line
    assert 'not known' not in line
    given = [a for a in part.arguments() if not a.startswith('--workdir=')]
    typed = load(monkeypatch, *given)
    assert config_lib.differences(typed, part.config) == []
    config_lib.validate(part.config, 8)
    if part.config.mode != 'train':  # as when its model is trained
      asked = combine_saved(part.config, trained[part.needs])
      config_lib.validate(asked, 8)
      if asked.mode == 'study' and config_lib.attacks(asked):
        adversarial.attack(lambda *_: None, asked)  # or refuses


@pytest.mark.parametrize('name', NAMES)
def test_docstring_says_how_where_and_what(name, monkeypatch):
  text = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))
  assert 'python -m vmoe_robust.experiment' in text
  assert f'--config=configs/experiments/{name}.py' in text
  assert '\nHardware: ' in text and '\nExpected: ' in text


def test_what_experiments_on_imagenet_share_is_the_same(monkeypatch, tmp_path):
  found = {}
  for name in NAMES:
    if name.startswith('imagenet'):
      for part in parts(of(name, monkeypatch), tmp_path):
        other = found.setdefault(part.name, part)
        assert config_lib.differences(part.config, other.config) == []


@pytest.mark.parametrize('name', ['digits_paper', 'cifar10_paper'])
def test_dense_models_cost_what_sparse_ones_do(name, monkeypatch):
  spent = {}
  for part in parts(of(name, monkeypatch), 'runs'):
    if part.mode == 'train':
      model = part.config.model
      model.update(dict(num_classes=10, channels=3))
      side = part.config.data.image_size
      spent[part.run] = flops.forward(model, side, 3)
  for dense, sparse in (('dense', 'moe_e8'), ('dense_k2', 'moe_e8_k2')):
    # All but the routers.
    assert 0.99 < spent[dense] / spent[sparse] < 1
  assert spent['dense_wide'] > spent['dense_k2'] > 1.1 * spent['dense']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['digits_paper', 'cifar10_paper'])
def test_the_wide_dense_model_has_as_many_parameters(name, monkeypatch):
  sizes, mesh = {}, mesh_lib.create((8, 1, 1))
  for part in parts(of(name, monkeypatch), 'runs'):
    if part.mode == 'train' and part.run in ('dense', 'dense_wide', 'moe_e8'):
      model = part.config.model
      model.update(dict(num_classes=10, channels=3))
      side = part.config.data.image_size
      shapes = jax.eval_shape(
        build(model, (side, side, 3), mesh).init, jax.random.key(0)
      )
      sizes[part.run] = sum(x.size for x in jax.tree.leaves(shapes))
  # All but the routers and the biases of the experts' outputs.
  assert 0.98 < sizes['dense_wide'] / sizes['moe_e8'] < 1
  assert sizes['moe_e8'] > 2 * sizes['dense']


def small(**changes):
  config = experiment.describe(runs=[RUN, dict(RUN, name='b')], attacks=[PGD])
  for name, value in changes.items():  # also of types that describe refuses
    config[name] = tuple(value)
  return config


def test_names_folders_and_order():
  config = small(
    runs=[dict(RUN, start='c'), dict(RUN, name='c'), dict(RUN, name='b')],
    seeds=(0, 5),
    attacks=[dict(PGD, of=('a', 'c'))],
  )
  every = parts(config, 'runs/x')
  assert [part.name for part in every] == [
    *('c_seed0', 'c_seed5', 'b_seed0', 'b_seed5', 'a_seed0', 'a_seed5'),
    *('c_seed0/attacks/pgd', 'c_seed5/attacks/pgd'),
    *('a_seed0/attacks/pgd', 'a_seed5/attacks/pgd'),
  ]
  by_name = {part.name: part for part in every}
  last = 'checkpoints/1600'
  assert by_name['a_seed5'].config.init_from == f'runs/x/c_seed5/{last}'
  assert by_name['a_seed5'].needs == 'c_seed5'
  judged = by_name['a_seed5/attacks/pgd']
  assert judged.config.checkpoint == f'runs/x/a_seed5/{last}'
  assert judged.config.seed == 0 and judged.seed == 5
  assert judged.folder == pathlib.Path('runs/x/a_seed5/attacks/pgd')
  stages = [part.stage for part in every]
  assert stages == sorted(stages) and set(stages) == {0, 1, 2}


def test_a_selection_keeps_what_it_starts_from():
  config = small(
    runs=[dict(RUN, start='c'), dict(RUN, name='c'), dict(RUN, name='b')],
    comparisons=[('a', 'b'), ('a', 'c')],
  )
  config.select = ('a',)
  assert {part.run for part in parts(config, 'x')} == {'a', 'c'}


def test_the_directory_of_the_data_reaches_every_part():
  config = small()
  config.data_dir = '/data'
  assert {part.config.data.dir for part in parts(config, 'x')} == {'/data'}


STUDY = dict(name='s', base='configs/study.py')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(runs=[]), ['config.runs is empty']),
    (dict(runs=[RUN, RUN]), ["config.runs 'a'", 'used twice']),
    (dict(attacks=[PGD, PGD]), ["config.attacks 'pgd'", 'used twice']),
    (dict(runs=[dict(RUN, chnages={})]), ["'chnages'", "'changes'"]),
    (dict(runs=[dict(name='a')]), ["'a'", "no 'base'"]),
    (dict(runs=[dict(base='x')]), ["no 'name'"]),
    (dict(runs=['a']), ['dict(name=']),
    (dict(runs=[dict(RUN, name='a b')]), ["'a b'", 'folder']),
    (
      dict(runs=[dict(RUN, base='configs/digit.py')]),
      ['digit.py', 'no Python'],
    ),
    (
      dict(runs=[dict(RUN, base='configs/study.py')]),
      ["mode='study'", 'train'],
    ),
    (dict(runs=[dict(RUN, base='README.md')]), ['README.md', 'no Python']),
    (dict(runs=[dict(RUN, changes=dict(modle={}))]), ["'modle'", "'model'"]),
    (
      dict(runs=[dict(RUN, changes=dict(model=dict(hiden=1)))]),
      ["'a': config.model", "'hiden'", "'hidden'"],
    ),
    (
      dict(runs=[dict(RUN, changes=dict(model=dict(hidden='x')))]),
      ["config.model.hidden='x'", 'int'],
    ),
    (dict(runs=[dict(RUN, changes=dict(model=3))]), ['config.model', 'dict']),
    (
      dict(runs=[dict(RUN, changes=dict(train=dict(steps=0)))]),
      ["'a': config.train.steps=0", '1 or more'],
    ),
    (dict(runs=[dict(RUN, changes=dict(mode='study'))]), ["mode='study'"]),
    (dict(runs=[dict(RUN, start='z')]), ["'a'", "'z'"]),
    (dict(runs=[dict(RUN, start='a')]), ["'a'", 'itself']),
    (dict(attacks=[dict(PGD, of=('z',))]), ["'pgd': of='z'", "'a', 'b'"]),
    (dict(attacks=[dict(PGD, of='a')]), ["of='a'", 'tuple']),
    (dict(attacks=[dict(PGD, name='x_adv')]), ["'x_adv'", 'of this name']),
    (
      dict(studies=[dict(STUDY, name='figures')]),
      ["'figures'", 'of this name'],
    ),
    (dict(unions=[dict(name='u', of=('pgd', 'l'))]), ["'u': of='l'", 'pgd']),
    (dict(unions=[dict(name='u', of=('pgd',))]), ["'u'", 'two attacks']),
    (dict(unions=[dict(name='pgd', of=('pgd',))]), ['an attack has the name']),
    (dict(unions=[dict(name='u')]), ["'u'", "no 'of'"]),
    (
      dict(studies=[STUDY], measures=[dict(name='m', study='t', number='x')]),
      ["'m': study='t'", "'s'"],
    ),
    (
      dict(studies=[STUDY], measures=[dict(name='m', study='s', number='x')]),
      ["'m': number='x'", 'give keys'],
    ),
    (
      dict(
        studies=[STUDY],
        measures=[dict(name='m', study='s', number=('x',), against='aa')],
      ),
      ["'m': against='aa'", "'pgd'"],
    ),
    (
      dict(
        studies=[STUDY],
        measures=[dict(name='m', study='s', number=('x',), unit='share')],
      ),
      ["'m': unit='share'", "'points'"],
    ),
    (
      dict(
        studies=[STUDY],
        measures=[dict(name='m', study='s', number=('x',), of=('z',))],
      ),
      ["'m': of='z'"],
    ),
    (dict(measures=[dict(name='m', study='s')]), ["'m'", "no 'number'"]),
    (
      dict(
        studies=[dict(STUDY, of=('b',))],
        measures=[dict(name='m', study='s', number=('x',), of=('a',))],
      ),
      ["'m': of='a'", "'b'"],
    ),
    (dict(runs=[dict(RUN, name=3)]), ['config.runs 3: name=3', 'no text']),
    (dict(runs=[dict(RUN, start=0)]), ["'a': start=0", 'no text']),
    # What the experiment sets in silence.
    (dict(runs=[dict(RUN, changes=dict(seed=7))]), ["'a': config.seed is"]),
    (
      dict(attacks=[dict(PGD, changes=dict(checkpoint='x'))]),
      ["'pgd': config.checkpoint is changed", 'leave it out'],
    ),
    (
      dict(
        runs=[RUN, dict(RUN, name='b', start='a', changes=dict(init_from='x'))]
      ),
      ["'b': config.init_from is changed"],
    ),
    (dict(comparisons=[('a', 'moe')]), ["config.comparisons='moe'"]),
    (dict(comparisons=['ab']), ['two runs']),
    (dict(comparisons=[('a', 'a')]), ['two runs']),
    (dict(attacks=[dict(PGD, name='clean')]), ["'clean'", 'of this name']),
    (dict(seeds=()), ['config.seeds=()']),
    (dict(seeds=(0, 0)), ['config.seeds=(0, 0)']),
    (dict(seeds=(0.5,)), ['config.seeds=(0.5,)']),
    (
      dict(studies=[dict(STUDY, changes=dict(study=dict(name='theory')))]),
      ["'s'", 'theory', 'by itself'],
    ),
    (
      dict(attacks=[dict(PGD, changes=dict(train=dict(log_every=10)))]),
      ['pgd', 'of a_seed0', 'config.train.log_every=10 has no effect'],
    ),
    (
      dict(
        studies=[
          dict(
            STUDY,
            changes=dict(
              study=dict(name='margin'), attack=dict(batch_size=256)
            ),
          )
        ]
      ),
      ['config.attack.batch_size=256', 'set config.study.margin.batch_size'],
    ),
    (
      dict(
        attacks=[dict(PGD, changes=dict(model=dict(router=dict(selected=1))))]
      ),
      ["'pgd': config.model.router.selected=1 has no", 'config.num_selected'],
    ),
    (
      dict(
        runs=[dict(RUN, base='configs/digits_moe.py')],
        attacks=[
          dict(PGD, changes=dict(attack=dict(experts='capacity', batch_size=9)))
        ],
      ),
      ["'pgd' of a_seed0", 'config.attack.batch_size=9', 'whole groups'],
    ),
  ],
  ids=lambda v: str(v)[:60],
)
def test_bad_descriptions_are_refused_in_one_line(changes, words):
  with pytest.raises(UserError) as stop:
    parts(small(**changes), 'runs/x')
  message = str(stop.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


def test_what_is_no_description_is_refused():
  config = small()
  config.select = ('z',)
  with pytest.raises(UserError, match="config.select='z'"):
    parts(config, 'x')
  with pytest.raises(UserError, match="'attacks'"):
    parts(ConfigDict(dict(runs=())), 'x')
  with pytest.raises(UserError, match="'atacks'.*'attacks'"):
    parts(ConfigDict(dict(atacks=())), 'x')


def test_costs_by_hand(monkeypatch):
  changes = dict(
    model=dict(layers=1, hidden=4, heads=1, mlp=8, patch=4),
    train=dict(steps=10, batch_size=32),
    attack=dict(at_end=False),
  )
  asked = dict(
    PGD,
    changes=dict(
      attack=dict(eps=(0.1, 0.2), steps=5), data=dict(split='test[:100]')
    ),
  )
  every = parts(
    small(
      runs=[dict(RUN, changes=changes)],
      attacks=[asked],
      studies=[dict(STUDY, changes=dict(data=dict(split='test[:7]')))],
    ),
    'x',
  )
  # Four tokens of 16 numbers: stem, attention, MLP and head.
  forward = 2 * 4 * 16 * 4 + 8 * 4 * 16 + 4 * 16 * 4 + 4 * 4 * 4 * 8 + 2 * 40
  assert cost.costs(every) == [
    cost.flop(10 * 32 * 3 * forward),
    # Clean, 5 gradients of two passes, the last x, and the judge.
    cost.flop(100 * 2 * (1 + 5 * 2 + 1 + 1) * forward),
    '7 images',
  ]
  two = dict(asked, changes=asked['changes'] | dict(num_selected=2))
  changes['model'] |= dict(experts=4, moe_every=1)
  attacks = [asked, dict(two, name='two')]
  config = small(runs=[dict(RUN, changes=changes)], attacks=attacks, studies=[])
  own, more = (
    cost.flop(100 * 2 * 13 * (forward + router + (k - 1) * 4 * 4 * 4 * 8))
    for k in (1, 2)
    for router in (4 * 2 * 4 * 4,)
  )
  assert cost.costs(parts(config, 'x'))[1:] == [own, more]
  assert cost.flop(1.234e12) == '1.23 TFLOP'
  assert cost.flop(999.9e15) == '1 EFLOP' and cost.flop(5e21) == '5e+03 EFLOP'


def trained(part, step, unmeasured=False):
  """What a training leaves that was cut short after so many steps."""
  saved = part.config.copy_and_resolve_references()
  saved.model.update(dict(num_classes=10, channels=1))  # of the data
  part.folder.mkdir(parents=True, exist_ok=True)
  checkpoint.save_config(part.folder, saved)
  kept = checkpoint.Checkpoints(part.folder, saved.save)
  arrays = {'params': {'x': jax.numpy.zeros(3)}}
  kept.save(step, arrays, {'data': None}, unmeasured=unmeasured)
  kept.close()
  return kept


def one(changes, workdir):
  config = small(runs=[dict(RUN, changes=changes)])
  return parts(config, workdir)


def test_states_of_a_training(tmp_path):
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  training, judging = one(ends, tmp_path)
  assert look(training).name == 'not started'
  trained(training, 4)
  assert look(training).name == 'cut short'
  assert look(training).detail == 'step 4 of 9'
  (training.folder / 'failed.json').write_text('{"error": "no room"}')
  assert look(training).name == 'failed' and look(training).detail == 'no room'
  found = states([training, judging])
  assert found[judging.name].name == 'waiting'
  kept = trained(training, 9, unmeasured=True)
  (training.folder / 'failed.json').unlink()
  assert look(training).detail == 'trained, not yet evaluated'
  kept.add_metrics(9, {}, {})
  assert look(training).name == 'finished'
  # What changes no number may change, and what would is named.
  [more, _] = one(ends | dict(save=dict(keep=7)), tmp_path)
  assert look(more).name == 'finished'
  [other, _] = one(ends | dict(model=dict(hidden=32)), tmp_path)
  assert look(other).name == 'changed'
  assert 'config.model.hidden=32 (was 64)' in look(other).detail
  [longer, _] = one(ends | dict(train=dict(steps=12)), tmp_path)
  assert look(longer).name == 'changed'
  [attacked, _] = one(dict(train=dict(steps=9)), tmp_path)
  assert look(attacked).name == 'changed'  # attack.at_end


def test_states_of_an_attack(tmp_path):
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  training, judging = one(ends, tmp_path)
  trained(training, 9)
  assert states([training, judging])[judging.name].name == 'not started'
  (judging.folder / 'unfinished').mkdir(parents=True)
  assert states([training, judging])[judging.name].name == 'cut short'
  write_results(judging, training)
  assert look(judging).name == 'finished'
  # Fields of studies, whose defaults another version may have set otherwise.
  training.config.study.routing_attacks.lambdas = (7.0,)
  assert look(training).name == 'finished'
  path = judging.folder / 'results.json'
  found = json.loads(path.read_text())
  found['asked']['config']['study']['routing_attacks']['lambdas'] = [7.0]
  path.write_text(json.dumps(found))
  assert look(judging).name == 'finished'
  judging.config.attack.steps += 1
  found = look(judging)
  assert found.name == 'changed' and 'config.attack.steps=41' in found.detail
  judging.config.attack.steps -= 1
  write_results(judging, training, checksum='other')
  assert 'weights that changed' in look(judging).detail
  (judging.folder / 'results.json').write_text('{')
  assert look(judging).name == 'failed' and 'damaged' in look(judging).detail


def test_examples_that_changed_are_others(tmp_path, monkeypatch):
  """Where they are no more, what was found of them counts."""
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  training, judging = one(ends, tmp_path)
  trained(training, 9)
  state = lambda: states([training, judging])[judging.name]
  known = job.examples_now(combine_saved(judging.config, training.config))
  for own, expected in (
    (None, 'finished'),
    (known, 'finished'),
    ('x', 'changed'),
  ):
    write_results(judging, training, fingerprint=own)
    assert state().name == expected, own
  assert "examples of 'digits' that changed" in state().detail
  shutil.rmtree(training.folder / 'checkpoints')
  report = lambda: states([training, judging], nothing_runs=True)
  assert {state().name, report()[judging.name].name} == {'not started'}
  write_results(judging, training, fingerprint=known, checksum='known')
  assert {state().name, report()[judging.name].name} == {'finished'}
  write_results(judging, training, fingerprint='x', checksum='known')
  monkeypatch.setattr(job, 'examples_now', lambda config: None)
  assert state().name == 'finished'


def test_checkpoints_may_be_deleted_when_all_is_done(tmp_path):
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  training, judging = one(ends, tmp_path)
  trained(training, 9)
  write_results(judging, training)
  shutil.rmtree(training.folder / 'checkpoints')
  found = states([training, judging])
  assert {state.name for state in found.values()} == {'finished'}
  # Of another configuration, or not all: it has to be trained again.
  for changed in (dict(model=dict(hidden=32)), dict(train=dict(steps=12))):
    found = states(one(ends | changed, tmp_path))
    assert found[training.name].name == 'not started'
  judging.config.attack.steps += 1
  assert states([training, judging])[training.name].name == 'not started'
  judging.config.attack.steps -= 1
  assert states([training])[training.name].name == 'not started'
  # Of what is missing nothing is found, and the rest counts while nothing runs.
  lost = dataclasses.replace(judging, name='lost', folder=tmp_path / 'lost')
  every = [training, judging, lost]
  assert {s.name for s in states(every).values()} == {'not started'}
  found = states(every, nothing_runs=True)
  assert [s.name for s in found.values()] == [
    'not started', 'finished', 'not started'
  ]  # fmt: skip
  # Another attack judged other weights, of a training on another machine.
  other = dataclasses.replace(judging, name='b', folder=tmp_path / 'other')
  write_results(other, training, checksum='other')
  for nothing_runs in (False, True):
    found = states([training, judging, other], nothing_runs)
    assert {state.name for state in found.values()} == {'not started'}
  write_results(other, training, checksum='same')
  write_results(judging, training, checksum='same')
  found = states([training, judging, other])
  assert {state.name for state in found.values()} == {'finished'}
  # What is damaged is named, and takes nothing else with it.
  for text in ('{', '[]', '{"format": "vmoe_robust results"}'):
    (judging.folder / 'results.json').write_text(text)
    found = states([training, judging, other])
    assert found[judging.name].name == 'failed'
    assert 'results.json' in found[judging.name].detail
    assert found[training.name].name == found['b'].name == 'finished'
    # Where nothing is known, it begins again.
    found = states([training, judging])
    assert found[training.name].name == 'not started'
  weights = dict(weights={'step': 9}, asked={})
  write_results(judging, training, checksum='same')
  known = json.loads((judging.folder / 'results.json').read_text())
  files.write_json(judging.folder / 'results.json', known | weights)
  found = states([training, judging, other])
  assert found[judging.name].name == 'failed'
  assert 'is damaged' in found[judging.name].detail


def test_what_failed_may_be_told_in_another_form(tmp_path):
  training = one(dict(train=dict(steps=9)), tmp_path)[0]
  training.folder.mkdir(parents=True)
  for text in ('{}', '[]', 'null', '{'):
    (training.folder / 'failed.json').write_text(text)
    assert look(training).name == 'not started'


def test_a_folder_that_moved_is_that_of_the_same_fine_tuning(tmp_path):
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  config = experiment.describe(
    runs=[
      dict(RUN, changes=ends),
      dict(RUN, name='b', start='a', changes=ends),
    ],
  )
  for training in parts(config, tmp_path / 'here'):
    trained(training, 9)
  (tmp_path / 'here').rename(tmp_path / 'there')
  there = parts(config, tmp_path / 'there')
  assert {state.name for state in states(there).values()} == {'finished'}
  _, second = there
  second.config.init_from = str(tmp_path / 'there/c_seed0/checkpoints/9')
  assert look(second).name == 'changed'


def test_an_attack_at_the_end_keeps_its_training_finished(tmp_path):
  training = one(dict(train=dict(steps=9)), tmp_path)[0]
  trained(training, 9)
  write_results(training, training, split='train (validation)')  # to select
  assert look(training).detail == 'trained, not yet attacked'
  write_results(training, training)
  assert look(training).name == 'finished'
  shutil.rmtree(training.folder / 'checkpoints')
  assert states([training])[training.name].name == 'finished'
  (training.folder / 'results.json').unlink()
  assert states([training])[training.name].name == 'not started'


def test_what_a_fine_tuning_started_from_may_be_deleted(tmp_path):
  ends = dict(attack=dict(at_end=False), train=dict(steps=9))
  config = experiment.describe(
    runs=[
      dict(RUN, changes=ends),
      dict(RUN, name='b', start='a', changes=ends),
    ],
    attacks=[dict(PGD, of=('b',))],
  )
  first, second, judging = parts(config, tmp_path)
  for training in (first, second):
    trained(training, 9)
  write_results(judging, second)
  shutil.rmtree(first.folder / 'checkpoints')
  every = [first, second, judging]
  assert {state.name for state in states(every).values()} == {'finished'}
  shutil.rmtree(second.folder / 'checkpoints')
  assert {state.name for state in states(every).values()} == {'finished'}
  (judging.folder / 'results.json').unlink()
  assert {state.name for state in states(every).values()} == {'not started'}


def write_results(
  judging, training, checksum=None, split=None, fingerprint=None
):
  """As far as a state looks at them."""
  config = checkpoint.read_config(training.folder)
  config.update(dict(mode='attack', checkpoint='/moved/since'))
  config.attack = judging.config.attack.copy_and_resolve_references()
  config.data.split = config.data.eval_split
  checksum = checksum or checkpoint.fingerprint(training.folder, 9)
  found = {
    'data': {'split': split or config.data.split, 'fingerprint': fingerprint},
    'summary': {},
    'files': {},
    'rows': [],
    'warnings': [],
    'format': 'vmoe_robust results',
    'format_version': 1,
    'asked': {'config': config.to_dict()},
    'weights': {'step': 9, 'checksum': checksum},
  }
  files.write_json(judging.folder / 'results.json', found)
  assert json.loads((judging.folder / 'results.json').read_text())


def test_the_paper_s_list_of_models(monkeypatch):
  every = parts(of('imagenet_cost', monkeypatch), 'x')
  models = {p.run: p.config.model for p in every if p.mode == 'train'}
  large = models['vit_l32']
  assert (large.hidden, large.layers, large.patch) == (1024, 24, 32)
  assert models['pretrain_vit_l32'].patch == 32
  assert not config_lib.moe_blocks(large)
  two = models['moe_b32_e2_k1']
  assert two.experts == 2 and two.router.gshard_weight == 0.01
  assert two.router.load_weight == 0 and two.router.capacity_factor == 1.5
  assert models['moe_s32_e32_k2'].hidden == presets.MODEL_SIZES['S']['hidden']
  fine = next(p.config for p in every if p.run == 'moe_b32_e32_k1')
  assert fine.data.image_size == 384 and fine.train.optimizer.name == 'sgd'
  start = 'x/pretrain_moe_b32_e32_k1_seed3/checkpoints/93835'
  assert fine.init_from == start


def test_the_example_of_the_page_works(tmp_path):
  page = (ROOT / 'docs/experiments.md').read_text()
  code = page.split('### Writing one')[1].split('```python')[1].split('```')[0]
  made = {}
  exec(code, made)  # noqa: S102
  every = parts(made['get_config'](), tmp_path)
  assert len(every) == 3 * (2 + 2 + 1)
  assert {part.run for part in every if part.mode == 'study'} == {'e8'}
