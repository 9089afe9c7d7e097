"""What a step minimises, on models whose answers are known by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.models import flops
from vmoe_robust.train import loop, objective, routers
from vmoe_robust.train.objective import OBJECTIVES, Given

EPS = 0.05


def settings(name, **fields):
  found = config_lib.default().train.objective
  found.update(dict(name=name, eps=EPS) | fields)
  return found


def given(seed=0, classes=3, low=0.3, high=0.7):
  """Images that a ball of EPS keeps inside the box, unless said otherwise."""
  rng = np.random.default_rng(seed)
  images = jnp.asarray(rng.uniform(low, high, (6, 4, 4, 1)), jnp.float32)
  label = rng.integers(0, classes, 6)
  return Given(
    images=images,
    wanted=jax.nn.one_hot(label, classes),
    mask=jnp.ones(6, bool),
    index=jnp.arange(6),
    keys=jax.random.split(jax.random.key(seed), 6),
    eps=jnp.float32(EPS),
    kind='softmax',
    one_class=True,
  )


def linear(classes=3, scale=1.0):
  """A linear classifier, and its weights as [pixels, classes]."""
  rng = np.random.default_rng(7)
  w = jnp.asarray(scale * rng.normal(size=(16, classes)), jnp.float32)
  aux = types.SimpleNamespace(loss=jnp.float32(0), records={})
  return lambda x: (x.reshape(len(x), -1) @ w, aux), np.asarray(w)


DUAL = {
  'linf': lambda w: np.abs(w).sum(),
  'l2': lambda w: np.linalg.norm(w),
  'l1': lambda w: np.abs(w).max(),
}


@pytest.mark.parametrize('scale', [1.0, 100.0])  # where cross-entropy rounds
@pytest.mark.parametrize('norm', DUAL)
def test_pgd_finds_the_worst_point_of_a_linear_model(norm, scale):
  answers, w = linear(classes=2, scale=scale)
  batch, how = given(classes=2), settings('pgd', norm=norm, steps=20)
  x_adv = OBJECTIVES['pgd'].attack(answers, batch, how)
  found = OBJECTIVES['pgd'].loss(answers, batch, x_adv, how)
  label = np.asarray(batch.wanted.argmax(-1))
  ahead = w[:, label] - w[:, 1 - label]  # [pixels, images]
  lead = (np.asarray(batch.images).reshape(6, -1) * ahead.T).sum(1)
  lead -= EPS * np.array([DUAL[norm](one) for one in ahead.T])
  np.testing.assert_allclose(found.loss, np.logaddexp(0, -lead), rtol=2e-3)
  assert (found.clean, found.adversarial.shape) == (None, (6, 2))


def distance(x_adv, batch):
  return np.abs(np.asarray(x_adv - batch.images)).max((1, 2, 3))


def test_fast_stays_in_the_ball_and_nfgsm_leaves_it():
  answers, _ = linear()
  batch = given()
  fast = OBJECTIVES['fast'].attack(answers, batch, settings('fast'))
  far = OBJECTIVES['nfgsm'].attack(answers, batch, settings('nfgsm'))
  assert (distance(fast, batch) <= EPS + 1e-6).all()
  # Noise of up to two radii, and a step of one.
  assert (distance(far, batch) > 2 * EPS).all()
  assert (distance(far, batch) <= 3 * EPS + 1e-6).all()
  edge = given(low=0.0, high=1.0)
  far = OBJECTIVES['nfgsm'].attack(answers, edge, settings('nfgsm'))
  assert far.min() == 0 and far.max() == 1


def test_one_step_of_fast_is_that_of_its_paper():
  """x + U(-eps, eps), then 1.25 eps along the sign, back into the ball."""
  answers, w = linear(classes=2)
  batch = given(classes=2)
  found = OBJECTIVES['fast'].attack(answers, batch, settings('fast'))
  label = np.asarray(batch.wanted.argmax(-1))
  sign = -np.sign(w[:, label] - w[:, 1 - label]).T.reshape(6, 4, 4, 1)
  noise = jax.vmap(lambda k: jax.random.uniform(k, (4, 4, 1), minval=-1))(
    batch.keys
  )
  moved = np.clip(EPS * np.asarray(noise) + 1.25 * EPS * sign, -EPS, EPS)
  np.testing.assert_allclose(found, batch.images + moved, atol=1e-6)


def probabilities(answers, x):
  return special.softmax(np.asarray(answers(x)[0], np.float64), axis=1)


def test_trades_is_that_of_its_paper():
  answers, _ = linear()
  batch, how = given(), settings('trades', beta=3.0, steps=5)
  x_adv = OBJECTIVES['trades'].attack(answers, batch, how)
  assert (distance(x_adv, batch) <= EPS + 1e-6).all()
  found = OBJECTIVES['trades'].loss(answers, batch, x_adv, how)
  clean = probabilities(answers, batch.images)
  after = probabilities(answers, x_adv)
  label = np.asarray(batch.wanted.argmax(-1))
  kl = special.rel_entr(clean, after).sum(1)
  start = batch.images + 0.001
  assert (
    kl > 10 * special.rel_entr(clean, probabilities(answers, start)).sum(1)
  ).all()
  expected = -np.log(clean[np.arange(6), label]) + 3 * kl
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4)


def test_mart_is_that_of_its_authors_code():
  answers, _ = linear()
  batch, how = given(), settings('mart', beta=5.0, steps=5)
  x_adv = OBJECTIVES['mart'].attack(answers, batch, how)
  found = OBJECTIVES['mart'].loss(answers, batch, x_adv, how)
  clean = probabilities(answers, batch.images)
  after = probabilities(answers, x_adv)
  expected = []
  for p, q, y in zip(clean, after, batch.wanted.argmax(-1), strict=True):
    best = np.argsort(q)
    rival = best[-2] if best[-1] == y else best[-1]
    boosted = -np.log(q[y]) - np.log(1.0001 - q[rival] + 1e-12)
    kl = (p * (np.log(p) - np.log(q + 1e-12))).sum()
    expected.append(boosted + 5 * kl * (1.0000001 - p[y]))
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4)


def test_the_radius_rises_over_a_share_of_the_steps():
  how = settings('pgd', ramp=0.25)
  found = [float(objective.eps_at(how, jnp.int32(i), 40)) for i in range(12)]
  expected = [EPS * min((i + 1) / 10, 1) for i in range(12)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert float(objective.eps_at(settings('pgd'), jnp.int32(0), 40)) == (
    np.float32(EPS)
  )


def adversarial(config, name, **fields):
  config.train.objective.update(dict(name=name, eps=EPS) | fields)
  return config


STEPS = {'pgd': 2, 'trades': 2, 'mart': 2, 'advmoe': 2}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_a_step_of_each_objective(config, run_of, name):
  """Sharded equals unsharded, and every router learns."""
  fields = {'steps': STEPS[name]} if name in STEPS else {}
  if name == 'advmoe':
    fields['route_by_class'] = True
  adversarial(config, name, **fields)
  alone, spread = run_of(config, (1, 1, 1)), run_of(config, (2, 2, 2))
  before = jax.device_get(routers.of(alone.state.params))
  found = {}
  for run in (alone, spread):
    for i in range(2):
      run.state, metrics = run.step(run.state, run.batch(i))
    found[run] = metrics
  for key, value in found[alone].items():
    np.testing.assert_allclose(
      found[spread][key], value, rtol=2e-3, atol=2e-4, err_msg=key
    )
  after = routers.of(alone.state.params)
  for block, router in before.items():
    assert found[alone][f'router_gradient_norm/{block}'] > 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), router, after[block])
    assert max(jax.tree.leaves(moved)) > 0
  if name != 'natural':
    assert found[alone]['eps'] == np.float32(EPS)
    assert 'adversarial_accuracy' in found[alone]


def test_accumulation_attacks_each_part(config, run_of):
  adversarial(config, 'pgd', steps=2)
  whole = run_of(config, (1, 1, 1))
  config.train.accumulate = 2
  parts = run_of(config, (1, 1, 1))
  whole.state, expected = whole.step(whole.state, whole.batch(0))
  parts.state, found = parts.step(parts.state, parts.batch(0))
  for name in expected:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name
    )


def test_a_part_of_the_batch_may_stay_clean(config, run_of):
  """With a radius beyond all, what is clean is told by its accuracy alone."""
  stays = objective_stays(0.25)
  assert stays.mean() == 0.25 and stays[:8].sum() == stays[8:].sum() == 2
  assert not objective_stays(0.0).any()
  adversarial(config, 'pgd', steps=1, clean_share=0.5)
  half = run_of(config, (1, 1, 1))
  _, found = half.step(half.state, half.batch(0))
  adversarial(config, 'pgd', steps=1, clean_share=0.0)
  none = run_of(config, (1, 1, 1))
  _, attacked = none.step(none.state, none.batch(0))
  config.train.objective.update(config_lib.default().train.objective)
  natural = run_of(config, (1, 1, 1))
  _, clean = natural.step(natural.state, natural.batch(0))
  losses = [m['cross_entropy'] for m in (clean, found, attacked)]
  assert losses[0] < losses[1] < losses[2]


def objective_stays(share):
  from vmoe_robust.train.step import _stays

  return np.asarray(_stays(jnp.arange(16), share))


def test_a_frozen_router_is_seen_not_to_learn(config, run_of):
  config.model.router.frozen = True
  run = run_of(config, (1, 1, 1))
  _, metrics = run.step(run.state, run.batch(0))
  norms = [v for k, v in metrics.items() if k.startswith('router_gradient')]
  assert norms and not any(norms)


@pytest.mark.parametrize(
  ('name', 'steps', 'passes'),
  [
    ('natural', 1, 3),
    ('pgd', 5, 13),
    ('fast', 1, 5),
    ('nfgsm', 1, 5),
    ('trades', 5, 17),
    ('mart', 5, 16),
  ],
)
def test_passes_are_those_of_the_compiled_step(
  config, run_of, name, steps, passes
):
  from vmoe_robust.cost import program

  config.model.experts = 0
  config.model.update(dict(hidden=64, mlp=256, layers=3))
  fields = {'steps': steps} if name in STEPS else {}
  if name != 'natural':
    adversarial(config, name, **fields)
  run = run_of(config, (1, 1, 1))
  compiled = run.step.lower(run.state, run.batch(0)).compile()
  size = run.batch(0)['image'].shape
  image = flops.forward(config.model, size[1], size[-1])
  wanted = passes * image * size[0]
  assert objective.forward_passes(config.train.objective) == passes
  counted = program.flops(compiled, run.mesh)
  assert counted == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'name': 'pdg'}, "did you mean 'pgd'"),
    ({'name': 'pgd', 'eps': 8.0}, 'eps=8.0 is no radius'),
    ({'name': 'pgd', 'eps': 0.0}, 'eps=0.0 is no radius'),
    ({'name': 'pgd', 'beta': 1.0}, 'beta=1.0 has no effect'),
    ({'name': 'natural', 'eps': 0.1}, 'eps=0.1 has no effect'),
    ({'name': 'fast', 'steps': 3}, 'steps=3 has no effect'),
    ({'name': 'trades', 'clean_share': 0.5}, 'clean_share=0.5 has no effect'),
    ({'name': 'pgd', 'ramp': 1.5}, 'ramp=1.5 is a share'),
    ({'name': 'pgd', 'steps': 0}, 'config.train.objective.steps=0'),
    ({'name': 'advmoe'}, "the model is dense; use 'trades'"),
  ],
  ids=str,
)
def test_objectives_that_make_no_sense(changes, words):
  config = config_lib.default()
  config.train.objective.update(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('mart', {'data.mixup': 0.5}, 'config.data.mixup=0.5 mixes'),
    ('trades', {'train.loss': 'sigmoid'}, 'needs one class an image'),
    (
      'advmoe',
      {'model.router.name': 'soft', 'model.experts': 4, 'model.moe_every': 2},
      "not config.model.router.name='soft'",
    ),
  ],
)
def test_objectives_that_do_not_fit(name, changes, words):
  config = config_lib.default()
  config.train.objective.name = name
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


def test_a_run_resumes_digit_for_digit(tmp_path, config):
  import json

  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'model.patch': 4,
      'model.hidden': 16,
      'model.layers': 2,
      'model.heads': 2,
      'model.mlp': 16,
      'model.experts': 4,
      'model.moe_every': 2,
      'model.router.group_images': 2,
      'train.batch_size': 32,
      'train.log_every': 1,
      'train.steps': 6,
      'save.every_steps': 3,
      'attack.at_end': False,
      'data.threads': 2,
    }
  )
  adversarial(config, 'pgd', steps=2, ramp=0.5)

  def lines(workdir):
    text = (workdir / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in text]
    keep = ('step', 'loss', 'eps', 'router_distance/encoderblock_1')
    return [
      [line[k] for k in keep] for line in found if line.get('loss') is not None
    ]

  loop.run(config, str(tmp_path / 'whole'))

  class Stop(loop.Stopping):
    turns = 3

    def __call__(self):
      self.turns -= 1
      return not self.turns

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'Stopping', Stop)
    loop.run(config, str(tmp_path / 'parts'))
  assert len(lines(tmp_path / 'parts')) < 6
  loop.run(config, str(tmp_path / 'parts'))
  assert lines(tmp_path / 'parts') == lines(tmp_path / 'whole')
  eps = [line[2] for line in lines(tmp_path / 'whole')]
  np.testing.assert_allclose(eps, [EPS * min(1, i / 3) for i in range(1, 7)])
