import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.evaluate import corruptions, judge
from vmoe_robust.evaluate.load import Restored
from vmoe_robust.report.records import read_records


def opened(config, source, model, params, workdir='nowhere'):
  mesh = model.module.mesh
  restored = Restored(model, params, config, mesh, workdir, 3)
  return judge.Opened(restored, source, config, workdir)


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
  config, in_memory, model_of, shape, batch_size
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
  config, in_memory, model_of, tmp_path
):
  model, params = model_of(config)
  here = opened(config, in_memory(9), model, params, tmp_path)
  columns, corrupt = corruptions.predictions(here)
  summarise = lambda rows: corruptions.summarise(rows, config)
  results = judge.write(here, columns, corrupt, summarise)
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


def test_logits_that_are_not_finite_are_wrong(config, in_memory, model_of):
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
