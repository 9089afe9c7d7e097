"""From a configuration and the name of a pod to what it would cost."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from tests.environment import child
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.attacks import ensemble
from vmoe_robust.attacks.passes import forward_passes
from vmoe_robust.cost import collectives, hardware, program
from vmoe_robust.models import flops
from vmoe_robust.rehearse import (
  advice,
  estimate,
  rehearsal,
  rehearse,
  show,
  topology,
)
from vmoe_robust.rehearse.programs import Programs

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture
def config():
  """A dense model so small that it compiles in a second."""
  config = config_lib.default()
  config.model.update(dict(patch=4, hidden=64, layers=1, heads=2, mlp=128))
  config.train.batch_size = 32
  config.attack.update(dict(steps=3, eps=(0.1, 0.2), batch_size=16))
  return config


def command(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'vmoe_robust.rehearse', *arguments],
    cwd=ROOT,
    env=child(),
    capture_output=True,
    text=True,
  )


def test_attacks_while_training_have_its_state_beside_them(config):
  """The attack at the end has not: what training alone needs was freed."""
  config.model.update(dict(num_classes=10, channels=1))
  mesh = mesh_lib.create((8, 1, 1))
  held = lambda use: Programs(config, mesh).held(use)
  assert 'optimizer' not in held('attack')
  config.attack.every_steps = 1
  train, attack = held('train'), held('attack')
  assert attack['optimizer'] == train['optimizer'] >= 2 * train['weights']
  # And the decoded images of scikit-learn's digits, less those held out.
  assert attack['images'] == train['images'] == 1437 * 64
  config.data.validation = 0.1
  assert held('train')['images'] == (1437 - 144) * 64
  config.data.crop = 'inception'
  assert held('train')['images'] == 0


@pytest.mark.slow
def test_digits_on_eight_cpus(tmp_path):
  out = tmp_path / 'deep' / 'found.json'
  done = command(
    *('--config=configs/digits_moe.py', '--topology=cpu:8', f'--out={out}'),
    *('--config.model.layers=2', '--config.attack.steps=5'),
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(out.read_text())
  assert str(out) in done.stdout
  assert '8 x cpu, data 1 x expert 8 x model 1' in done.stdout
  assert found['config'] == 'digits_moe' and found['examples'] == 360
  assert found['changes'] == [
    '--config.model.layers=2',
    '--config.attack.steps=5',
  ]
  train, attack = found['programs']['train'], found['programs']['pgd']
  for part, ratio in (train, 1.3), (attack, 1.3):
    assert part['fits'] is None and part['limit'] is None
    formula = part['flops_per_image_by_formula']
    assert 0.9 < part['flops_per_image'] / formula < ratio
    assert part['bytes']['total'] >= sum(
      part['bytes'][name] for name in ('weights', 'batch', 'temporaries')
    )
    (rows,) = (c for c in part['collectives'] if c['kind'] == 'all-to-all')
    assert rows['axes'] == ['expert']
  # A block each way and back; averaged weights are as many as the weights.
  (rows,) = (c for c in train['collectives'] if c['kind'] == 'all-to-all')
  assert rows['count'] == 4
  assert train['bytes']['averages'] == train['bytes']['weights']
  assert attack['open_loops'] > 0 and train['open_loops'] == 0


@pytest.mark.slow
def test_a_run_without_attacks_is_rehearsed_without(config):
  config.model.update(dict(num_classes=10, channels=1))
  config.attack.at_end, said = False, []
  found = rehearse(config, 'cpu:8', examples=360, say=said.append)
  assert list(found['programs']) == ['train'] and 'attack' not in found
  assert 'at_end=False' in said[-1]
  assert 'Attack' not in show(found) and 'Training step' in show(found)


def test_weights_are_never_made(config):
  # A trillion parameters.
  config.model.update(dict(hidden=2**17, mlp=2**19, layers=6, num_classes=10))
  config.model.channels = 1
  programs = Programs(config, mesh_lib.create((8, 1, 1)))
  assert programs.held('train')['weights'] > 4e12
  assert programs.batch('train')['image'].shape == (32, 8, 8, 1)


def passes(programs, name):
  """By formula."""
  stage, classes = programs.stages()[name], programs.config.model.num_classes
  return forward_passes(stage, classes, programs.judged)


def together(programs, name):
  """Costs of a run of a stage and of its judgement."""
  return sum(
    (
      program.costs(programs.compile(one), programs.mesh)
      for one in (name, 'judge')
    ),
    program.Costs(0, 0, (), ()),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'attack',
  [
    dict(restarts=2),
    dict(random_start=False),
    dict(target='runner_up'),
    dict(name='paper'),
    dict(name='autoattack', norm='l2', queries=7),
    dict(name='fab+mim', steps=2),
  ],
  ids=str,
)
def test_forward_passes_are_those_of_the_program(config, attack):
  config.attack.update(attack)
  config.model.update(dict(num_classes=10, channels=1))
  mesh = mesh_lib.create((8, 1, 1))
  programs = Programs(config, mesh)
  one = flops.forward(config.model, config.data.image_size, 1) / mesh.size
  for name in programs.stages():
    costs = together(programs, name)
    batch = config_lib.batch_size(config, 'attack')
    wanted = passes(programs, name) * one * batch
    assert costs.flops == pytest.approx(wanted, rel=0.1), name
    assert costs.open_loops == ()


def test_forward_passes_of_training(config):
  config.model.update(dict(num_classes=10, channels=1))
  mesh = mesh_lib.create((8, 1, 1))
  costs = program.costs(Programs(config, mesh).compile('train'), mesh)
  one = flops.forward(config.model, config.data.image_size, 1) / mesh.size
  wanted = 3 * one * config.train.batch_size
  assert costs.flops == pytest.approx(wanted, rel=0.1)
  assert costs.open_loops == ()


def test_roofline_and_schedule(config):
  chip = hardware.Chip(1e12, 1e9, 1e10, 1e9, 1e9)
  inside = collectives.Collective(
    'all-reduce', 'f32', 8_000_000, 3, 8, ('data',), 1, 1.0, ''
  )
  between = dataclasses.replace(inside, devices=2, slices=2)
  costs = program.Costs(1e10, 2e8, (inside, between), ())
  roof = estimate.roofline(costs, chip)
  assert roof.compute == pytest.approx(0.01)
  assert roof.memory == pytest.approx(0.02) and roof.bound == 'links'
  assert roof.links == roof.seconds == pytest.approx(3 * 14e6 / 1e9)
  assert roof.network == pytest.approx(3 * 8e6 / 1e9)
  # 7 batches of 16 at two radii, nine targets each.
  stage = ensemble('apgd_t', 'linf', 10).stages[0]
  assert estimate.calls(config, stage, 100) == 7 * 2 * 9
  stage = dataclasses.replace(stage, targets=0, restarts=3)
  assert estimate.calls(config, stage, 100) == 7 * 2 * 3


@pytest.mark.slow
def test_autoattack_is_rehearsed_stage_by_stage(config):
  names = ['apgd_ce', 'fab_t', 'square', 'apgd_ce#2']
  config.attack.name = 'apgd_ce+fab_t+square+apgd_ce'
  config.attack.update(queries=4, steps=2)
  config.attack.experts = 'capacity'
  config.model.update(dict(experts=8, moe_every=1))
  config.model.router.group_images = 2
  said = []
  found = rehearse(config, 'cpu:8', examples=100, say=said.append)
  assert len(said) == 2 and ', '.join(names) in said[1]
  train, *stages = found['programs']
  assert train == 'train' and stages == names
  first, fab, square, again = (found['programs'][name] for name in stages)
  assert (first['steps'], fab['steps'], square['steps']) == (3, 2, 5)
  assert {one['calls'] for one in (first, square, again)} == {7 * 2}
  assert fab['calls'] == 7 * 2 * 9
  # What is alike is compiled once.
  assert again['flops_per_image'] == first['flops_per_image']
  assert again['compile_seconds'] < first['compile_seconds'] / 2
  most = max(one['bytes']['total'] for one in (first, fab, square))
  assert found['attack'] == {'total': most, 'fits': None}
  for one in first, square:
    assert one['bytes']['total'] >= one['bytes']['judging'] > 0
    assert one['open_loops'] == 0  # capacity exchanges tokens once
  text = show(found)
  assert 'Attack square, a run of 5 steps, 16 images' in text
  (row,) = (x.split() for x in text.splitlines() if x.startswith('square'))
  assert row[1:4] == ['1', '5', '14']
  assert text.splitlines()[-1].startswith('together')


def test_hours_of_stages_are_summed():
  part = {'bytes': {'total': 3}, 'fits': True, 'hours': 1.0, 'chip_hours': 8.0}
  other = part | {'bytes': {'total': 5}, 'hours': 3.0, 'chip_hours': 24.0}
  assert rehearsal._whole([part, other], 7200) == {
    **dict(total=5, fits=True, hours=4.0, chip_hours=32.0),
    'images_per_second': 0.5,
  }
  del other['hours']  # it is too large
  assert rehearsal._whole([part, other | {'fits': False}], 7200) == {
    **dict(total=5, fits=False)
  }


def test_advice_on_activations(config):
  config.model.update(dict(experts=8, moe_every=1))
  config.train.batch_size = config.eval.batch_size = 256
  found = advice.advise(config, 8, 'train', GIB, 12 * GIB, 5 * GIB)
  # Room for a third of the batch: in whole groups, a quarter.
  assert found[0].startswith('--config.train.accumulate=4')
  assert found[1].startswith('--config.train.batch_size=64')
  assert found[2].startswith('--config.train.remat=dots')
  assert found[3].startswith('--config.train.remat=blocks')
  assert found[4] == 'a topology of 32 chips or more' and len(found) == 5
  config.train.remat = 'blocks'
  found = advice.advise(config, 8, 'attack', GIB, 7 * GIB, 5 * GIB)
  assert found[0].startswith('--config.attack.batch_size=8')
  assert len(found) == 2


def test_advice_on_weights(config):
  config.model.update(dict(experts=8, moe_every=1))
  config.mesh.update(dict(expert=2))
  found = advice.advise(config, 8, 'train', 9 * GIB, GIB, 5 * GIB)
  assert found == [
    '--config.mesh.expert=8: fewer experts on each device',
    '--config.mesh.zero1=True: the optimizer split over the data axis',
    '--config.mesh.fsdp=True: weights and optimizer split over the data axis',
    '--config.train.optimizer.moment_dtype=bfloat16',
    'a topology of 16 chips or more',
  ]
  # Two slices are joined along the data axis, of two at least.
  found = advice.advise(config, 8, 'train', 9 * GIB, GIB, 5 * GIB, slices=2)
  assert found[0].startswith('--config.mesh.expert=4')


def test_what_does_not_fit_is_shown():
  found = {
    **dict(parameters=1e6, slices=2, topology='v5e:4x4', chips=32),
    **dict(device_kind='TPU v5 lite', mesh={'data': 32}),
    'programs': {
      'train': {
        **dict(batch=64, limit=16 * GIB, fits=False),
        'bytes': {'weights': GIB, 'total': 20 * GIB},
        'advice': ['less'],
      }
    },
  }
  text = show(found)
  assert '1.0 million parameters on 2 x v5e:4x4: 32 x TPU v5 lite' in text
  assert 'Does not fit: 4.00 GiB more than the 16.00 of a chip.' in text
  assert text.endswith('less')


@pytest.mark.parametrize(
  'name, slices, words',
  [
    ('v5e-16', 1, 'v5p:4x4x4'),
    ('v9:2x2', 1, 'v9:2x2'),
    ('v5e:4x4x4', 1, '2 axes; use one such as v5e:4x4'),
    ('v5p:4x4', 1, '3 axes'),
    ('cpu:0', 1, 'cpu:0'),
    ('cpu:64', 1, 'leave out XLA_FLAGS'),
    ('cpu:8', 2, '--slices=2'),
    ('v5e:4x4', 0, '--slices=0'),
    ('cpu:1', 0, '--slices=0'),
    ('cpu:1', -1, '--slices=-1'),
  ],
)
def test_topologies_that_are_none(name, slices, words):
  assert jax.device_count() == 8  # JAX has started
  with pytest.raises(config_lib.UserError) as error:
    topology.devices(name, slices)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_without_libtpu_the_way_out_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(config_lib.UserError, match=r"'vmoe_robust\[tpu\]'"):
    topology.devices('v5e:4x4')


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'train.batch_size': 31}, 'config.train.batch_size=31 is not divisible'),
    ({'mode': 'attack'}, 'needs a checkpoint'),
    (
      {'attack.name': 'autoattack', 'train.loss': 'sigmoid'},
      'needs one label an image',
    ),
    ({'data.name': 'secret'}, 'set --config.model.num_classes'),
    (
      {'data.name': 'secret', 'model.num_classes': 2, 'model.channels': 1},
      'set --examples',
    ),
    ({'data.eval_split': 'nowhere'}, 'nowhere'),
  ],
  ids=str,
)
def test_configurations_that_cannot_be_rehearsed(config, fields, words):
  config.update_from_flattened_dict(fields)
  with pytest.raises(config_lib.UserError, match=words):
    rehearse(config, 'cpu:8')


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], '--config names no file'),
    (['--config=configs/digits_vit.py'], '--topology is missing'),
    (['--config=configs/nothing.py', '--topology=cpu:1'], 'nothing.py'),
    (
      ['--config=configs/digits_vit.py', '--config.train.stepz=1'],
      'no such field',
    ),
  ],
  ids=str,
)
def test_the_command_says_what_is_wrong(arguments, words):
  done = command(*arguments)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and words in done.stderr
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('name, slices', [('v5e:2x2', 2), ('v4:2x2x1', 1)])
def test_a_pod_that_is_not_there(config, name, slices):
  pytest.importorskip('libtpu')
  said = []
  found = rehearse(config, name, slices, examples=100, say=said.append)
  assert len(said) == 2 and found['chips'] == 4 * slices
  assert found['device_kind'].startswith('TPU v') and found['slices'] == slices
  for part in found['programs'].values():
    assert part['fits'] and part['bytes']['total'] < part['limit']
    formula = part['flops_per_image_by_formula']
    assert part['flops_per_image'] == pytest.approx(formula, rel=0.1)
    assert part['open_loops'] == 0 and 0 < part['mfu'] <= 1
  train = found['programs']['train']
  assert {one['slices'] for one in train['collectives']} == {1, slices}
  assert (train['seconds']['network'] > 0) == (slices > 1)
  assert train['hours'] == pytest.approx(
    config.train.steps * max(train['seconds'].values()) / 3600
  )
  assert 'Fits: ' in show(found) and 'images a second' in show(found)


def test_a_batch_that_no_chip_holds(config):
  pytest.importorskip('libtpu')
  config.train.batch_size = config.eval.batch_size = 2**26
  found = rehearse(config, 'v5e:2x2', examples=100, say=lambda _: None)
  train = found['programs']['train']
  assert train['fits'] is False and 'seconds' not in train
  assert train['bytes']['total'] > train['limit'] > 15 * GIB
  assert train['advice'][0].startswith('--config.train.accumulate=')
  assert found['programs']['pgd']['fits']
  assert 'Does not fit: ' in show(found)
