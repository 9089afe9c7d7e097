import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.evaluate.job import write
from vmoe_robust.report.records import read_records
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.studies import certificates, corruptions


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'corruptions'
  config.study.corruptions.names = ('gaussian_noise', 'frost')
  config.study.corruptions.severities = (1, 5)
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  ('shape', 'batch_size'), [((1, 1, 1), 8), ((2, 4, 1), 16)]
)
def test_predictions_are_the_models(
  config, in_memory, model_of, opened, shape, batch_size
):
  config.study.corruptions.batch_size = batch_size
  model, params = model_of(config, shape)
  source = in_memory(11)
  columns, corrupt = corruptions.predictions(
    opened(config, source, model, params)
  )
  assert not corrupt and len(columns['index']) == 5 * 11
  alone, weights = model_of(config)
  apply = jax.jit(alone.apply)
  for shown in corruptions.variants(config):
    rows = (columns['corruption'] == shown.name) & (
      columns['severity'] == shown.severity
    )
    assert columns['index'][rows].tolist() == list(range(11))
    images = [shown(image, i) for i, image in enumerate(source.images)]
    logits, _ = apply(weights, jnp.stack(images) / 255)
    np.testing.assert_array_equal(
      columns['prediction_after'][rows], logits.argmax(-1)
    )
    np.testing.assert_array_equal(columns['label'][rows], source.labels)


@pytest.mark.slow
def test_written_results_come_from_the_records(
  config, in_memory, model_of, opened, tmp_path, check_form
):
  model, params = model_of(config)
  job = opened(config, in_memory(9), model, params, tmp_path)
  write(job, corruptions.run(job))
  results, records = (
    check_form(tmp_path),
    read_records(tmp_path / 'records.parquet'),
  )
  right = records['prediction_after'] == records['label']
  assert [row['condition'] for row in results['rows']] == [
    *('clean', 'gaussian_noise 1', 'gaussian_noise 5', 'frost 1', 'frost 5')
  ]
  clean = records['condition'] == 'clean'
  for row in results['rows']:
    rows = records['condition'] == row['condition']
    assert row['accuracy']['value'] == pytest.approx(right[rows].mean())
    assert row['accuracy']['n'] == 9
    assert set(records['severity'][rows]) == {row['severity']}
    # What the clean image was taken for stands beside it.
    np.testing.assert_array_equal(
      records['prediction_before'][rows], records['prediction_after'][clean]
    )
  summary = results['summary']
  for name, found in summary['corruptions'].items():
    rows = records['corruption'] == name
    error = found['mean_error']
    assert error['value'] == pytest.approx(1 - right[rows].mean())
    assert error['interval'][0] <= error['value'] <= error['interval'][1]
  error = 1 - right[~clean].mean()
  assert summary['clean_accuracy']['value'] == right[clean].mean()
  assert summary['mean_corruption_error']['value'] == pytest.approx(error)
  above = summary['mean_corruption_error_above_clean']['value']
  assert above == pytest.approx(error + right[clean].mean() - 1)
  noise = summary['corruptions']['gaussian_noise']['mean_error']
  assert summary['mean_corruption_error_without_frost'] == noise
  assert summary['frost'] == 'drawn' and not summary['is_complete']
  assert summary['strengths_of'] == 'CIFAR-10-C'
  assert 'gaussian_noise' in corruptions.render(results)
  assert 'drawn' in results['warnings'][0]


def test_logits_that_are_not_finite_are_wrong(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  params['head']['kernel'] = params['head']['kernel'] * jnp.nan
  job = opened(config, in_memory(8), model, params)
  found = corruptions.run(job)
  assert found.summary['clean_accuracy']['value'] == 0
  assert [row['accuracy']['value'] for row in found.rows] == 5 * [0]
  assert found.summary['not_finite'] == 5 * 8
  assert '40 predictions are not finite' in write(job, found)['warnings'][-1]


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('names', ('fogg',), r"names='fogg'.*'fog'"),
    ('names', (), r'names=\(\).* tuple'),
    ('names', ('fog', 'fog'), 'twice'),
    ('names', 'fog', r"names='fog' is no tuple"),
    ('severities', (0,), r'severities=0 .*1, 2'),
    ('severities', (1, 1), 'twice'),
    ('frost_dir', '/photographs', "no effect without 'frost'"),
    ('batch_size', 7, r'config\.study\.corruptions\.batch_size=7 .*use 4 or 8'),
  ],
)
def test_refusals(config, field, value, words):
  with config.ignore_type():
    if field == 'frost_dir':
      config.study.corruptions.names = ('fog',)
    config.study.corruptions[field] = value
  config.model.experts = 0
  config.model.moe_every = 0
  config.mesh.update(dict(data=4))
  with pytest.raises(UserError, match=words):
    validate(config, 4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['corruptions', 'certificates'])
def test_a_run_goes_on_after_its_last_batch(
  config, in_memory, model_of, opened, tmp_path, monkeypatch, name
):
  config.study.name = name
  config.study.certificates.update(dict(n0=2, n=6, batch_size=8))
  rows_of = {
    'corruptions': corruptions.predictions,
    'certificates': certificates.certificates,
  }[name]
  model, params = model_of(config)
  here = lambda workdir=None: opened(
    config, in_memory(24), model, params, workdir
  )
  expected, _ = rows_of(here())
  kept = lambda: sorted((tmp_path / 'unfinished').glob('*.npz'))
  put = Unfinished.put

  def stop(self, name, arrays):
    put(self, name, arrays)
    if name == '1':
      self.wait()
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Unfinished, 'put', stop)
    with pytest.raises(KeyboardInterrupt):
      rows_of(here(tmp_path))
  before = [(path, path.stat().st_mtime_ns) for path in kept()]
  assert len(before) == 2
  found, _ = rows_of(here(tmp_path))
  assert len(kept()) > 2
  assert all(path.stat().st_mtime_ns == then for path, then in before)
  for field, column in expected.items():
    np.testing.assert_array_equal(found[field], column, field)
  config.seed = 5
  with pytest.raises(UserError, match='config.seed is 5 here and was 0'):
    rows_of(here(tmp_path))
