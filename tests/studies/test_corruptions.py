import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.evaluate import corruptions, judge, smoothing
from vmoe_robust.evaluate.kept import Kept
from vmoe_robust.report.records import read_records


@pytest.fixture
def config(config):
  config.mode = 'corrupt'
  config.corrupt.names = ('gaussian_noise', 'frost')
  config.corrupt.severities = (1, 5)
  return config


@pytest.mark.parametrize(
  ('shape', 'batch_size'), [((1, 1, 1), 8), ((2, 4, 1), 16)]
)
def test_predictions_are_the_models(
  config, in_memory, model_of, opened, shape, batch_size
):
  config.corrupt.batch_size = batch_size
  model, params = model_of(config, shape)
  source = in_memory(11)
  columns, corrupt = corruptions.predictions(
    opened(config, source, model, params)
  )
  assert not corrupt and len(columns['index']) == 5 * 11
  alone, weights = model_of(config)
  for shown in corruptions.variants(config):
    rows = (columns['corruption'] == shown.name) & (
      columns['severity'] == shown.severity
    )
    assert columns['index'][rows].tolist() == list(range(11))
    images = [shown(image, i) for i, image in enumerate(source.images)]
    logits, _ = alone.apply(weights, jnp.stack(images) / 255)
    np.testing.assert_array_equal(
      columns['prediction'][rows], logits.argmax(-1)
    )
    np.testing.assert_array_equal(columns['label'][rows], source.labels)


def test_written_results_come_from_the_records(
  config, in_memory, model_of, opened, tmp_path
):
  model, params = model_of(config)
  here = opened(config, in_memory(9), model, params, tmp_path)
  columns, corrupt = corruptions.predictions(here)
  results = judge.write(here, columns, corrupt, corruptions.summarise)
  records = read_records(tmp_path / 'records.parquet')
  right = records['prediction'] == records['label']
  for name in config.corrupt.names:
    found = results['corruptions'][name]
    for severity in (1, 5):
      rows = (records['corruption'] == name) & (records['severity'] == severity)
      expected = pytest.approx(right[rows].mean())
      assert found['accuracy'][str(severity)] == expected
    rows = records['corruption'] == name
    assert found['mean_error'] == pytest.approx(1 - right[rows].mean())
  clean = right[records['corruption'] == 'clean'].mean()
  error = 1 - right[records['corruption'] != 'clean'].mean()
  assert results['clean_accuracy'] == pytest.approx(clean)
  assert results['mean_corruption_error'] == pytest.approx(error)
  above = results['mean_corruption_error_above_clean']
  assert above == pytest.approx(error + clean - 1)
  noise = results['corruptions']['gaussian_noise']['mean_error']
  assert results['mean_corruption_error_without_frost'] == noise
  assert results['frost'] == 'drawn' and not results['is_complete']
  assert results['strengths_of'] == 'CIFAR-10-C'
  text = corruptions.closing(results, tmp_path)
  assert 'gaussian_noise' in text and 'drawn' in text and '9 examples' in text


def test_logits_that_are_not_finite_are_wrong(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  params['head']['kernel'] = params['head']['kernel'] * jnp.nan
  columns, _ = corruptions.predictions(
    opened(config, in_memory(8), model, params)
  )
  results = corruptions.summarise(columns, config)
  assert results['clean_accuracy'] == 0 and results['not_finite'] == 5 * 8
  assert 'not finite' in corruptions.closing(
    results | dict(split='', step=1, checkpoint='', corrupt_images=[]), ''
  )


def test_several_labels():
  labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], np.float32)
  right = judge.is_right(np.array([2, 0, -1]), labels)
  assert right.tolist() == [True, False, False]


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('names', ('fogg',), r"names='fogg'.*'fog'"),
    ('names', (), r'names=\(\).* tuple'),
    ('names', ('fog', 'fog'), 'twice'),
    ('names', 'fog', r"names='fog' is no tuple"),
    ('severities', (0,), r'severities=0 .*1, 2'),
    ('severities', (1, 1), 'twice'),
    ('batch_size', 7, r'config\.corrupt\.batch_size=7 .*use 4 or 8'),
  ],
)
def test_refusals(config, field, value, words):
  with config.ignore_type():
    config.corrupt[field] = value
  config.model.experts = 0
  config.model.moe_every = 0
  config.mesh.update(dict(data=4))
  with pytest.raises(UserError, match=words):
    validate(config, 4)


@pytest.mark.parametrize('mode', ['corrupt', 'certify'])
def test_a_run_goes_on_after_its_last_batch(
  config, in_memory, model_of, opened, tmp_path, monkeypatch, mode
):
  config.mode = mode
  config.certify.update(dict(n0=2, n=6, batch_size=8))
  rows_of = {
    'corrupt': corruptions.predictions,
    'certify': smoothing.certificates,
  }[mode]
  model, params = model_of(config)
  here = lambda workdir=None: opened(
    config, in_memory(24), model, params, workdir
  )
  expected, _ = rows_of(here())
  kept = lambda: sorted((tmp_path / 'unfinished').glob('*.npz'))
  put = Kept.put

  def stop(self, found, batch, part='all'):
    put(self, found, batch, part)
    if batch == 1:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Kept, 'put', stop)
    with pytest.raises(KeyboardInterrupt):
      rows_of(here(tmp_path))
  before = [(path, path.stat().st_mtime_ns) for path in kept()]
  assert len(before) == 2
  found, _ = rows_of(here(tmp_path))
  assert len(kept()) > 2
  assert all(path.stat().st_mtime_ns == then for path, then in before)
  for name, column in expected.items():
    np.testing.assert_array_equal(found[name], column, name)
  config.seed = 5
  with pytest.raises(UserError, match='config.seed is 5 here and was 0'):
    rows_of(here(tmp_path))
