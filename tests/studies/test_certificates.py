import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vmoe_robust.config import UserError, validate
from vmoe_robust.data import Part
from vmoe_robust.evaluate.job import write
from vmoe_robust.models import Model
from vmoe_robust.report.records import read_records
from vmoe_robust.studies import certificates as study


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'certificates'
  config.study.certificates.update(
    dict(n0=5, n=43, sigma=0.1, batch_size=24, alpha=0.01)
  )
  return config


@pytest.fixture
def certificates(config, model_of, opened):
  def find(source, shape=(1, 1, 1)):
    model, params = model_of(config, shape)
    columns, corrupt = study.certificates(opened(config, source, model, params))
    assert not corrupt
    return columns

  return find


@pytest.mark.parametrize(
  ('count', 'n', 'alpha', 'expected'),
  [
    (100, 100, 0.05, 0.05**0.01),  # all of n: alpha^(1/n)
    (1, 10, 0.05, 1 - 0.95**0.1),
    (9, 10, 0.05, 0.60584),  # tables of Clopper and Pearson, 90% two-sided
    (5, 10, 0.025, 0.18709),  # 95% two-sided
    (0, 10, 0.05, 0.0),
  ],
)
def test_clopper_pearson(count, n, alpha, expected):
  bound = study.lower_bound(np.array(count), n, alpha)
  assert bound == pytest.approx(expected, abs=1e-5)
  if count:  # by its definition
    tail = stats.binom.sf(count - 1, n, bound)
    assert tail == pytest.approx(alpha, rel=1e-6)


def test_the_bound_is_rarely_too_high():
  count = np.random.default_rng(0).binomial(200, 0.7, 20_000)
  is_false = study.lower_bound(count, 200, 0.05) > 0.7
  assert 0.03 < is_false.mean() <= 0.055


def test_radius_and_abstention():
  """The paper's figure: no radius exceeds 3.8 sigma at n = 100,000."""
  count = np.array([100_000, 99_000, 50_600, 50_400, 20_000])
  selected = np.array([3, 1, 4, 1, 5])
  prediction, radius = study.certify(selected, count, 100_000, 0.001, 0.5)
  assert prediction.tolist() == [3, 1, 4, -1, -1]
  assert radius[0] / 0.5 == pytest.approx(3.8115, abs=1e-3)
  bound = stats.beta.ppf(0.001, 99_000, 1_001)
  assert radius[1] == pytest.approx(0.5 * stats.norm.ppf(bound))
  assert 0 < radius[2] < 0.01 and (radius[3:] == 0).all()


def test_a_linear_model_is_certified_short_of_its_boundary(
  config, in_memory, model_of, opened
):
  """Of a half-space the true radius is known: the distance to its edge."""

  class HalfSpace(Model):
    def apply(self, params, images, experts, mask):
      score = images.mean((1, 2, 3)) - 0.5
      return jnp.stack([score, -score, *2 * [score - 9]], -1), None

  config.study.certificates.update(
    dict(n=1000, n0=20, sigma=0.5, batch_size=256)
  )
  model = HalfSpace(model_of(config)[0].module, (8, 8, 1))
  source = in_memory(8)
  columns, _ = study.certificates(opened(config, source, model, {}))
  means = source.images.reshape(8, -1).mean(1) / 255 - 0.5
  distance = np.abs(means) * np.sqrt(64)
  assert (columns['radius'] <= distance + 1e-6).all()
  assert (columns['radius'] > 0).any()
  sure = columns['prediction_after'] != study.ABSTAIN
  assert (columns['prediction_after'] == (means < 0))[sure].all()
  assert (distance - columns['radius'])[distance < 0.5].max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [16, 24, 64])
def test_counts_do_not_depend_on_batch_or_mesh(
  config, in_memory, batch_size, certificates
):
  source = in_memory(11)
  alone = certificates(source)
  assert (alone['counts_n0'].sum(1) == 5).all()
  assert (alone['counts'].sum(1) == 43).all()
  config.study.certificates.batch_size = batch_size
  spread = certificates(source, (2, 4, 1))
  for name in ('counts', 'counts_n0', 'index', 'label', 'prediction_after'):
    np.testing.assert_array_equal(alone[name], spread[name])


@pytest.mark.slow
def test_counts_are_of_the_models_own_classes(
  config, in_memory, model_of, certificates
):
  config.study.certificates.update(dict(n=3, n0=2, sigma=1e-6, alpha=0.2))
  source = in_memory(8)
  columns = certificates(source)
  model, params = model_of(config)
  x = jnp.asarray(source.images / np.float32(255))
  logits, _ = jax.jit(model.apply)(params, x)
  np.testing.assert_array_equal(columns['selected'], logits.argmax(-1))
  np.testing.assert_array_equal(columns['count'], np.full(8, 3))


@pytest.mark.slow
def test_every_kth_example_has_its_own_draws(config, in_memory, certificates):
  source = in_memory(13)
  whole = certificates(source)
  config.study.certificates.every = 4
  few = certificates(source)
  assert few['index'].tolist() == [0, 4, 8, 12]
  assert len(Part(source, np.arange(0, len(source), 4))) == 4
  for name in ('counts', 'label', 'radius'):
    np.testing.assert_array_equal(few[name], whole[name][::4])
  config.seed = 1
  other = certificates(source)
  assert (other['counts'] != few['counts']).any()


@pytest.mark.slow
def test_draws_that_are_not_finite_have_no_vote(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  params['head']['kernel'] = params['head']['kernel'] * jnp.nan
  here = opened(config, in_memory(8), model, params)
  columns, _ = study.certificates(here)
  assert (columns['prediction_after'] == study.ABSTAIN).all()
  found = study.findings(columns, set(), config)
  assert found.summary['not_finite'] == 8 * 48
  assert found.summary['abstained']['value'] == 1
  assert found.summary['smoothed_accuracy']['value'] == 0
  assert [row['certified_accuracy']['value'] for row in found.rows] == 5 * [0]
  assert found.warnings == ['384 draws are not finite: no votes']


@pytest.mark.slow
def test_written_results_come_from_the_records(
  config, in_memory, model_of, tmp_path, opened, check_form
):
  config.study.certificates.radii = (0.0, 0.05, 9.0)
  model, params = model_of(config)
  job = opened(config, in_memory(30), model, params, tmp_path)
  write(job, study.run(job))
  results, records = (
    check_form(tmp_path),
    read_records(tmp_path / 'records.parquet'),
  )
  right = records['prediction_after'] == records['label']
  zero, small, large = (row['certified_accuracy'] for row in results['rows'])
  summary = results['summary']
  assert zero == summary['smoothed_accuracy']
  assert zero['value'] == right.mean() and zero['n'] == 30
  assert small['value'] == (right & (records['radius'] >= 0.05)).mean()
  assert large['value'] == 0 and large['interval'][1] < 0.12
  mean, radii = summary['mean_certified_radius'], records['radius'] * right
  assert mean['value'] == pytest.approx(radii.mean())
  assert mean['interval'][0] <= radii.mean() <= mean['interval'][1]
  assert radii.max() <= summary['largest_radius_possible'] + 1e-9
  text = study.render(results)
  assert 'certified accuracy' in text and 'abstained' in text


@pytest.mark.parametrize(
  ('examples', 'wanted', 'shards', 'expected'),
  [
    (1000, 64, 8, (64, 1)),
    (10, 64, 8, (16, 4)),
    (3, 8, 8, (8, 1)),
    (5, 100, 1, (5, 20)),
  ],
)
def test_a_batch_is_filled(examples, wanted, shards, expected):
  assert study._shape(examples, wanted, shards) == expected


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('sigma', 0.0, r'sigma=0\.0 is no noise'),
    ('sigma', float('inf'), 'sigma=inf is no noise'),
    ('alpha', 1.0, r'alpha=1\.0 .*between 0 and 1'),
    ('n', 0, 'n=0 must be 1'),
    ('n0', 0, 'n0=0 must be 1'),
    ('n', 6, r'n=6 can certify nothing at .*use 7 or more'),
    ('every', 0, 'every=0 must be 1'),
    ('radii', (), 'radii'),
    ('radii', (-0.5,), r'radii=-0\.5 is no radius'),
    ('radii', ('1/2',), 'write 0.5'),
    (
      'batch_size',
      7,
      r'study\.certificates\.batch_size=7 .*use 4 or 8',
    ),
  ],
)
def test_refusals(config, field, value, words):
  with config.ignore_type():
    config.study.certificates[field] = value
  config.model.experts = 0
  config.model.moe_every = 0
  config.mesh.update(dict(data=4))
  with pytest.raises(UserError, match=words):
    validate(config, 4)


@pytest.mark.slow
def test_one_program_serves_all_draws(config, in_memory, model_of):
  model, params = model_of(config)
  count = study.counter(model, config, 3)
  batch = dict(
    image=jnp.asarray(in_memory(8).images),
    mask=jnp.ones(8, bool),
    index=jnp.arange(8),
  )
  votes = jnp.zeros((8, 4), jnp.int32)
  parts = votes
  for first, last in ((0, 4), (4, 11)):
    parts = count(params, batch, parts, np.int32(first), np.int32(last))
  whole = count(params, batch, votes, np.int32(0), np.int32(11))
  np.testing.assert_array_equal(parts, whole)
  assert count._cache_size() <= 2  # of counts that lie otherwise
  assert jax.device_get(whole).sum() == 8 * 11
