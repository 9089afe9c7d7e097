"""Steps and runs of adversarial training on a small V-MoE."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.cost import program
from vmoe_robust.errors import SavedAndStopped
from vmoe_robust.models import flops
from vmoe_robust.train import loop, objective, routers
from vmoe_robust.train.objective import OBJECTIVES

EPS = 0.05
BLOCK = 'encoderblock_1'
STEPS = {'pgd': 2, 'trades': 2, 'mart': 2, 'advmoe': 2}


def adversarial(config, name, **fields):
  if name in STEPS:
    fields = {'steps': STEPS[name]} | fields
  if name != 'natural':
    fields = {'eps': EPS} | fields
  config.train.objective.update(dict(name=name) | fields)
  return config


def taken(run, steps):
  for i in range(steps):
    run.state, metrics = run.step(run.state, run.batch(i))
  return metrics


@pytest.mark.slow
@pytest.mark.parametrize('name', OBJECTIVES)
def test_sharded_equals_unsharded_and_every_router_learns(config, run_of, name):
  fields = {'route_by_class': True} if name == 'advmoe' else {}
  adversarial(config, name, **fields)
  alone, spread = run_of(config, (1, 1, 1)), run_of(config, (2, 2, 2))
  before = jax.device_get(routers.of(alone.state.params))
  assert list(before) == [BLOCK]
  found, others = taken(alone, 2), taken(spread, 2)
  assert set(found) == set(others)
  for key, value in found.items():
    np.testing.assert_allclose(
      others[key], value, rtol=2e-3, atol=2e-4, err_msg=key
    )
  assert found[f'router_gradient_norm/{BLOCK}'] > 0
  after = jax.device_get(routers.of(alone.state.params))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
  assert min(jax.tree.leaves(moved)) > 0
  if name == 'natural':
    assert 'eps' not in found and 'adversarial_accuracy' not in found
  else:
    assert found['eps'] == np.float32(EPS)
  asks_clean = name not in ('pgd', 'fast', 'nfgsm')
  assert ('accuracy' in found) == asks_clean


@pytest.mark.slow
def test_a_frozen_router_is_seen_not_to_learn(config, run_of):
  config.model.router.frozen = True
  metrics = taken(run_of(adversarial(config, 'pgd'), (1, 1, 1)), 1)
  assert metrics[f'router_gradient_norm/{BLOCK}'] == 0


@pytest.mark.slow
def test_accumulation_attacks_each_part(config, run_of):
  adversarial(config, 'pgd')
  whole = run_of(config, (1, 1, 1))
  config.train.accumulate = 2
  parts = run_of(config, (1, 1, 1))
  expected, found = taken(whole, 1), taken(parts, 1)
  for name in expected:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name
    )


@pytest.mark.slow
def test_what_stays_clean_is_told_apart(config, run_of):
  """Both losses of a step with a clean share are those of its own images."""
  config.model.dropout, config.model.experts = 0.0, 0
  config.train.optimizer.learning_rate = 0.0
  step = {}
  for share in (0.0, 0.5):
    adversarial(config, 'pgd', clean_share=share)
    run = run_of(config, (1, 1, 1))
    # The head starts at zero, where no attack does anything.
    head = run.state.params['head']
    kernel = jax.random.normal(jax.random.key(0), head['kernel'].shape)
    params = run.state.params | {'head': head | {'kernel': kernel}}
    run.state = jax.device_put(run.state.replace(params=params), run.places)
    batch = run.batch(0)
    for name, keep in (('all', 16), ('even', 2), ('odd', 2)):
      mask = np.asarray(batch['mask']).copy()
      if keep == 2:
        mask[(0 if name == 'odd' else 1) :: 2] = False
      state = jax.tree.map(jnp.copy, run.state)
      _, step[share, name] = run.step(state, dict(batch, mask=mask))
  # Every other image stays clean: the odd ones.
  found = step[0.5, 'all']
  attacked = step[0.0, 'even']['adversarial_cross_entropy']
  np.testing.assert_allclose(
    found['adversarial_cross_entropy'], attacked, rtol=1e-5
  )
  np.testing.assert_allclose(
    found['cross_entropy'], step[0.5, 'odd']['cross_entropy'], rtol=1e-5
  )
  assert found['cross_entropy'] < step[0.0, 'odd']['adversarial_cross_entropy']
  mixed = (8 * found['adversarial_cross_entropy'], 7 * found['cross_entropy'])
  np.testing.assert_allclose(found['loss'], sum(mixed) / 15, rtol=1e-5)


@pytest.mark.slow
def test_the_two_steps_of_advmoe_are_clipped_apart(config, run_of):
  """Each has its own norm: neither makes the other's step shorter."""
  adversarial(config, 'advmoe')
  config.model.router.noise_std = config.model.dropout = 0.0
  config.train.optimizer.update(
    dict(name='sgd', momentum=0.0, learning_rate=1.0, clip_norm=1e-3)
  )
  config.train.optimizer.update(dict(schedule='constant'))
  run = run_of(config, (1, 1, 1))
  before = jax.device_get(run.state.params)
  taken(run, 1)
  moved = jax.tree.map(np.subtract, jax.device_get(run.state.params), before)
  zeros = lambda tree: jax.tree.map(np.zeros_like, tree)
  model, only = routers.without(moved), routers.merged(zeros(moved), moved)
  for part in (model, only):
    leaves = jax.tree.leaves(part)
    norm = np.sqrt(sum(np.square(leaf, dtype=float).sum() for leaf in leaves))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_second_attack_of_advmoe_has_noise_of_its_own(
  config, run_of, monkeypatch
):
  seen = []

  def attack(answers, given, settings):
    data = jax.random.key_data(given.keys)
    jax.debug.callback(lambda keys: seen.append(np.asarray(keys)), data)
    return given.images

  spied = dataclasses.replace(OBJECTIVES['advmoe'], attack=attack)
  monkeypatch.setitem(OBJECTIVES, 'advmoe', spied)
  config.seed = 12345  # the step of this test alone
  run = run_of(adversarial(config, 'advmoe'), (1, 1, 1))
  taken(run, 1)
  jax.effects_barrier()
  first, second = seen
  assert (first != second).any(-1).all()  # the key of every image


def compiled_flops(run):
  compiled = run.step.lower(run.state, run.batch(0)).compile()
  return program.flops(compiled, run.mesh)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'steps', 'passes'),
  [
    ('natural', 10, 3),
    ('pgd', 5, 13),
    ('fast', 10, 5),
    ('nfgsm', 10, 5),
    ('trades', 5, 17),
    ('mart', 5, 16),
  ],
)
def test_passes_are_those_of_the_compiled_step(
  config, run_of, name, steps, passes
):
  config.model.update(dict(experts=0, hidden=64, mlp=256, layers=3))
  run = run_of(adversarial(config, name, steps=steps), (1, 1, 1))
  assert objective.forward_passes(config.train.objective) == passes
  image = flops.forward(config.model, 8, 1)
  wanted = passes * image * config.train.batch_size
  assert compiled_flops(run) == pytest.approx(wanted, rel=0.06)


@pytest.mark.slow
def test_an_attack_keeps_nothing_for_the_gradient(config, run_of):
  """However many steps it has, a step needs the memory of a natural one."""
  config.model.update(dict(experts=0, hidden=64, mlp=256, layers=4))

  def temporaries(name, **fields):
    run = run_of(adversarial(config, name, **fields), (1, 1, 1))
    compiled = run.step.lower(run.state, run.batch(0)).compile()
    return program.memory(compiled).temporaries

  natural = temporaries('natural')
  few, many = temporaries('pgd', steps=2), temporaries('pgd', steps=9)
  assert few == many < 1.2 * natural


@pytest.mark.slow
def test_passes_of_advmoe(config, run_of):
  """Its second step has no gradient by the weights of the model.

  Nor by the activations below the first router, which depends on the model.
  """
  config.model.update(dict(hidden=32, mlp=128, layers=4, experts=2))
  config.model.router.update(dict(selected=1, capacity_factor=1.0))
  natural = compiled_flops(run_of(config, (1, 1, 1))) / 3
  adversarial(config, 'advmoe', steps=3, inner='training')
  passes = objective.forward_passes(config.train.objective)
  assert passes == 12 + 4 * 3
  found = compiled_flops(run_of(config, (1, 1, 1))) / natural
  assert passes - 2.5 < found < passes * 1.02


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'name': 'pdg'}, "did you mean 'pgd'"),
    ({'name': 'pgd', 'eps': 8.0}, 'eps=8.0 is above 1'),
    ({'name': 'pgd', 'eps': 0.0}, 'eps=0 attacks nothing'),
    ({'name': 'pgd', 'beta': 1.0}, 'beta=1.0 has no effect.* default of 6.0'),
    ({'name': 'natural', 'eps': 0.1}, 'eps=0.1 has no effect'),
    ({'name': 'fast', 'steps': 3}, 'steps=3 has no effect.* default of 10'),
    ({'name': 'trades', 'clean_share': 0.5}, 'clean_share=0.5 has no effect'),
    (
      {'name': 'pgd', 'clean_share': 0.001},
      'leaves no image clean, or none to attack; use a number from 0.0078',
    ),
    ({'name': 'pgd', 'ramp': 1.5}, 'ramp=1.5 is a share'),
    ({'name': 'pgd', 'steps': 0}, 'config.train.objective.steps=0'),
    ({'name': 'pgd', 'inner': 'train'}, "did you mean 'training'"),
    ({'name': 'pgd', 'norm': 'l3'}, 'config.train.objective.norm='),
    ({'name': 'advmoe'}, "the model is dense; use 'trades'"),
  ],
  ids=str,
)
def test_objectives_that_make_no_sense(changes, words):
  config = config_lib.default()
  config.train.objective.update(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


SPARSE = {'model.experts': 4, 'model.moe_every': 2}


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('mart', {'data.mixup': 0.5}, 'config.data.mixup=0.5 mixes'),
    ('trades', {'train.loss': 'sigmoid'}, 'needs one class an image'),
    ('advmoe', SPARSE | {'model.router.name': 'soft'}, "router.name='soft'"),
    ('advmoe', SPARSE | {'model.router.gate': 'sigmoid'}, "gate='sigmoid'"),
    ('advmoe', SPARSE | {'model.router.frozen': True}, 'router.frozen=True'),
  ],
)
def test_objectives_that_do_not_fit(name, changes, words):
  config = config_lib.default()
  config.train.objective.name = name
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


class StopAfterThree(loop.Stopping):
  turns = 3

  def __call__(self):
    self.turns -= 1
    return not self.turns


def logged(workdir):
  text = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in text]
  timing = ('images_per_second', 'mfu', 'time')
  return [
    {k: v for k, v in line.items() if k not in timing}
    for line in lines
    if 'loss' in line
  ]


@pytest.mark.slow
def test_a_run_resumes_digit_for_digit(tmp_path, config, monkeypatch):
  # What the digits do not share with the model of these tests.
  config.model.update(dict(num_classes=0, channels=0))
  config.train.update(dict(steps=6, batch_size=32, log_every=1))
  config.attack.at_end = False
  config.data.update(dict(resident=False, mixup=0.0))
  config.save.every_steps = 3
  adversarial(config, 'pgd', ramp=0.5)
  loop.run(config, str(tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    patch.setattr(loop, 'Stopping', StopAfterThree)
    with pytest.raises(SavedAndStopped, match='step 3'):
      loop.run(config, str(tmp_path / 'parts'))
  assert len(logged(tmp_path / 'parts')) == 3
  loop.run(config, str(tmp_path / 'parts'))
  whole = logged(tmp_path / 'whole')
  assert logged(tmp_path / 'parts') == whole
  # Of the routers' start too, which is drawn again.
  distances = [line[f'router_distance/{BLOCK}'] for line in whole]
  assert len(whole) == 6 and distances[5] > distances[0] > 0
  eps = [line['eps'] for line in whole]
  np.testing.assert_allclose(eps, [EPS * min(1, i / 3) for i in range(1, 7)])
