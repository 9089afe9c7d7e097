import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vmoe_robust
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.combine import combine
from vmoe_robust.evaluate.job import Job
from vmoe_robust.studies import run, theory
from vmoe_robust.studies.theory import cells, learned, misrouting, show


@pytest.fixture
def config():
  config = config_lib.default()
  config.mode, config.study.name = 'study', 'theory'
  config.study.theory.update(
    dict(draws=2, experts=(2,), points=8, dimension=16, mlp_dimension=4)
  )
  config.study.theory.update(
    dict(mlp_width=32, disagreements=(0.0, 1.0), blocks_dimension=4)
  )
  return config


def test_the_numbers_of_the_closed_form():
  """n 256, d 1024: what one draw had is within what 20 draws have."""
  norms = []
  for seed in range(20):
    rng = np.random.default_rng([0, seed])  # as the study draws
    x, y = cells.draw(rng, 256, 1024)
    norms.append([cells.largest_expert(x, y, e) for e in (1, 2, 4, 8, 16)])
  norms = np.array(norms)
  assert norms[:, 0].min() < 18.3 < norms[:, 0].max()
  assert norms.mean(0) == pytest.approx([18.4, 12.2, 8.4, 5.9, 4.2], abs=0.1)
  ratios = norms[:, :1] / norms[:, 1:]
  seen = np.array([1.46, 2.14, 3.07, 4.29])
  assert (ratios.min(0) < seen).all() and (seen < ratios.max(0)).all()
  assert (ratios.mean(0) > np.sqrt([2, 4, 8, 16])).all()
  expected = [cells.expected_norm(256 // e, 1024) for e in (1, 2)]
  assert expected == pytest.approx([18.475, 12.095], abs=1e-3)


@pytest.mark.parametrize('experts', [2, 4, 8])
def test_of_orthogonal_points_the_ratio_is_the_root_of_e(experts):
  rng = np.random.default_rng(0)
  x = np.linalg.qr(rng.standard_normal((32, 16)))[0].T
  y = rng.choice([-1.0, 1.0], 16)
  dense = cells.largest_expert(x, y, 1)
  assert dense == pytest.approx(4)
  found = dense / cells.largest_expert(x, y, experts)
  assert found == pytest.approx(np.sqrt(experts))
  assert cells.law(16, 32, experts * 32) == pytest.approx(dense / found)


def test_the_smallest_weights_fit():
  x, y = cells.draw(np.random.default_rng(1), 6, 10)
  w = cells.min_norm(x, y)
  np.testing.assert_allclose(x @ w, y, atol=1e-12)
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
  np.testing.assert_allclose(w, np.linalg.lstsq(x, y)[0], atol=1e-12)


def test_the_slope_of_small_mlps_is_that_between_two_points():
  """Two opposite points with labels 1 and -1: some slope is 1 or more."""
  x = jnp.array([[[1.0, 0.0], [-1.0, 0.0]]])
  y = jnp.array([[1.0, -1.0]])
  slope, value = cells.mlp_gradients(jax.random.key(0), x, y, 16)
  np.testing.assert_allclose(value, y, atol=0.05)
  assert slope.max() > 0.9


def test_the_terms_add_up_to_the_gradient():
  keys = jax.random.split(jax.random.key(0), 3)
  router, experts = (jax.random.normal(k, (4, 16)) for k in keys[:2])
  x = jax.random.normal(keys[2], (16,))
  of_experts, gate = learned.terms(router, experts, x)
  whole = jax.grad(learned.output, 2)(router, experts, x)
  np.testing.assert_allclose(of_experts + gate, whole, atol=1e-5)
  assert jnp.linalg.norm(gate) > 0.1
  same = jnp.broadcast_to(experts[:1], experts.shape)
  np.testing.assert_allclose(learned.terms(router, same, x)[1], 0, atol=1e-6)
  flat = jnp.broadcast_to(router[:1], router.shape)
  np.testing.assert_allclose(learned.terms(flat, experts, x)[1], 0, atol=1e-6)


def test_the_teacher_disagrees_as_it_is_told():
  rng = np.random.default_rng(0)
  for disagreement, cosine in ((0.0, 1.0), (0.6, 0.64), (1.0, 0.0)):
    _, functions = learned.teacher(rng, disagreement)
    products = functions @ functions.T
    np.testing.assert_allclose(np.diag(products), 1)
    np.testing.assert_allclose(products[0, 1], cosine, atol=1e-12)


def test_the_risks_are_those_of_the_best_linear_predictors():
  """By their definition, from the moments of the inputs and the target."""
  experts, noise = 4, 0.5
  dense, right, wrong = misrouting.risks(experts, noise)
  for share, found in ((1 / experts, dense), (1, right)):
    weight = share / (share + noise**2)  # times the true function
    # The block is on with this share of the inputs; others are noise.
    of_noise = noise**2 * weight**2 / share
    assert found == pytest.approx((1 - weight) ** 2 + of_noise)
  at = misrouting.reversal(experts, noise)
  assert (1 - at) * right + at * wrong == pytest.approx(dense)
  assert at == pytest.approx(0.3125)
  assert misrouting.reversal(16, noise) == pytest.approx(0.625)


def test_fitted_predictors_have_the_risks_of_the_formulas():
  rng, experts = np.random.default_rng(0), 4
  functions = misrouting.functions(rng, experts, 8)
  x, y, cell = misrouting.draw(rng, functions, 0.5, 40_000)
  dense, own = misrouting.fit(x, y, cell)
  x, y, cell = misrouting.draw(rng, functions, 0.5, 40_000)
  wrong = misrouting.misrouted(rng, cell, experts, 1.0)
  assert (wrong != cell).all()
  found = [
    (((x * dense).sum((1, 2)) - y) ** 2).mean(),
    ((misrouting.routed(own, x, cell) - y) ** 2).mean(),
    ((misrouting.routed(own, x, wrong) - y) ** 2).mean(),
  ]
  assert found == pytest.approx(misrouting.risks(experts, 0.5), rel=0.05)


@pytest.mark.slow
def test_it_runs_without_a_checkpoint(config, tmp_path, capsys, check_form):
  run.run(config, tmp_path)
  first = capsys.readouterr().out
  assert '16 examples, drawn for this; no checkpoint' in first
  results = check_form(tmp_path)
  assert set(results['weights'].values()) == {None}
  assert results['asked']['experts'] is None
  by = {row['condition']: row for row in results['rows']}
  found = by['orthogonal, E 2']['dense_over_largest']['value']
  assert found == pytest.approx(np.sqrt(2))
  agree, disagree = (
    by[f'learned, disagreement {d}']['gate_term']['value'] for d in (0, 1)
  )
  assert agree < 0.05 < disagree
  records = vmoe_robust.read_results(tmp_path).records
  assert records.num_rows == 16 * len(by)
  run.run(config, tmp_path)
  assert 'is finished' in capsys.readouterr().out


@pytest.mark.slow
def test_fits_that_miss_are_told(config):
  """Of three units no MLP fits eight random labels; of 32 all do."""
  job = Job(None, None, config, 'nowhere')
  assert not theory.run(job).warnings
  config.study.theory.mlp_width = 3
  found = ' '.join(theory.run(job).warnings)
  assert 'mlp, E 1: 2 of 2 fits ended at a mean squared error above' in found
  assert 'config.study.theory.mlp_width' in found


def test_one_draw_has_no_interval():
  assert show._shown({'value': 4.7462, 'interval': None}) == '4.746'
  shown = show._shown({'value': 1.0, 'interval': (0.5, 1.5)})
  assert shown == '1.000 (0.500 to 1.500)'


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('dimension', 8, 'dimension=8 must be 9 or more'),
    ('experts', (3,), 'points=8 is not divisible by 3'),
    ('misrouted', (1.5,), 'misrouted=1.5 must be between 0 and 1'),
    ('blocks_noise', 0.0, 'blocks_noise=0.0 is no noise'),
    ('blocks_dimension', 0, 'blocks_dimension=0 must be 1 or more'),
  ],
)
def test_what_makes_no_sense(config, tmp_path, field, value, words):
  config.study.theory[field] = value
  with pytest.raises(UserError, match=words):
    run.run(config, tmp_path)


def test_a_checkpoint_has_no_effect(config, tmp_path):
  config.checkpoint = 'somewhere'
  with pytest.raises(UserError, match=r'config\.checkpoint.* has no effect'):
    run.run(config, tmp_path)


def test_the_config_of_all_studies_runs_it():
  root = pathlib.Path(__file__).parents[2]
  spec = importlib.util.spec_from_file_location('c', root / 'configs/study.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.study.name = 'theory'
  assert combine(config, None).study.name == 'theory'
  config.data.split = 'test'
  with pytest.raises(UserError, match=r'data\.split=.* has no effect'):
    combine(config, None)
