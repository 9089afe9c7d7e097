"""A model is judged on the classes and the labels that it was trained for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vmoe_robust
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint.export import export
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import attack, job
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.models import build, unbox
from vmoe_robust.report.results import read_results
from vmoe_robust.robustness import findings
from vmoe_robust.robustness.resume import Unfinished


def colours(seed):
  return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def image_folder(root, *names, count=6, split='test'):
  """Random images: those of a class are the same wherever it is."""
  for name in names:
    (root / split / name).mkdir(parents=True)
    for i in range(count):
      pixels = colours([*name.encode(), i])
      Image.fromarray(pixels).save(root / split / name / f'{i}.png')
  return root


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
  """Makes a run's workdir with random weights and given class names."""

  def make(*names, classes=3, **data):
    workdir = tmp_path_factory.mktemp('run')
    config = config_lib.default()
    config.model.update(dict(patch=4, hidden=16, layers=1, heads=2, mlp=16))
    config.model.update(dict(num_classes=classes, channels=3))
    config.data.update(dict(name='folder', threads=2, **data))
    mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
    params = unbox(
      jax.jit(build(config.model, (8, 8, 3), mesh).init)(jax.random.key(0))
    )
    head = params['head']['kernel']
    params['head']['kernel'] = jax.random.normal(jax.random.key(1), head.shape)
    checkpoints = checkpoint.Checkpoints(workdir, config.save)
    checkpoints.save(1, {'params': params}, {'data': None})
    checkpoints.close()
    checkpoint.save_config(workdir, config, names)
    return workdir

  return make


@pytest.fixture(scope='module')
def run(run_of):
  return run_of('apple', 'frog', 'whale')


def judging(run, folder):
  config = config_lib.default()
  config.mode, config.checkpoint = 'attack', str(run)
  config.data.update(name='folder', dir=str(folder), split='test', threads=2)
  config.attack.update(dict(eps=(0.001,), steps=1, batch_size=8))
  return config


def source_of(config, workdir):
  with job.open_job(config, workdir, findings.render) as found:
    return found.source


@pytest.mark.slow
def test_two_classes_of_three_are_judged_by_name(run, tmp_path):
  folder = image_folder(tmp_path / 'images', 'frog', 'whale')
  attack.run(judging(run, folder), tmp_path / 'out')
  classifier = vmoe_robust.load(run)
  right = []
  for number, name in ((1, 'frog'), (2, 'whale')):
    images = np.stack([colours([*name.encode(), i]) for i in range(6)])
    right += list(np.asarray(classifier(images)).argmax(-1) == number)
  assert 0 < np.mean(right) < 1
  results = read_results(tmp_path / 'out')
  clean = results['summary']['clean_accuracy']
  assert clean['value'] == np.mean(right) and clean['n'] == 12


def test_a_class_that_the_model_does_not_know_is_refused(run, tmp_path):
  folder = image_folder(tmp_path / 'images', 'frog', 'whale', 'zinnia')
  with pytest.raises(UserError, match="not know: 'zinnia', and lacks 'apple'"):
    source_of(judging(run, folder), tmp_path / 'out')


def test_class_names_outlive_saving_and_export(run, tmp_path):
  names = ('apple', 'frog', 'whale')
  assert checkpoint.read_class_names(run) == names
  assert 'class_names' not in checkpoint.read_config(run)
  weights = checkpoint.open_weights(run)
  assert weights.class_names == names
  export(weights, tmp_path / 'model.safetensors')
  exported = checkpoint.open_weights(tmp_path / 'model.safetensors')
  assert exported.class_names == names
  assert exported.config == weights.config
  (run / 'config.json').rename(run / 'config.away')
  assert checkpoint.read_class_names(run) == ()  # saved before the names were
  (run / 'config.away').rename(run / 'config.json')


def test_runs_without_names_still_open(run_of, tmp_path, caplog):
  old = run_of()
  weights = checkpoint.open_weights(old)
  assert weights.class_names == ()
  folder = image_folder(tmp_path / 'images', 'cat', 'dog', 'eel')
  source = source_of(judging(old, folder), tmp_path / 'out')
  for i in range(len(source)):
    name = source.describe(i).split('/')[-2]
    assert source[i]['label'] == ('cat', 'dog', 'eel').index(name)
  assert 'by their number (3) alone, because the model does' in caplog.text


@pytest.mark.slow
def test_runs_without_names_do_not_judge_folders_of_numbers(run_of, tmp_path):
  old = run_of(classes=12)
  numbers = image_folder(tmp_path / 'a', *map(str, range(12)), count=1)
  with pytest.raises(UserError, match='classes of the model have no saved nam'):
    source_of(judging(old, numbers), tmp_path / 'out')
  # Both ways out: the order of text, and that of numbers.
  text = image_folder(tmp_path / 'b', *(f'c{i}' for i in range(12)), count=1)
  source = source_of(judging(old, text), tmp_path / 'out')
  names = [source.describe(i).split('/')[-2] for i in range(12)]
  assert source[names.index('c10')]['label'] == 2
  zeros = image_folder(tmp_path / 'c', *(f'{i:02}' for i in range(12)), count=1)
  source = source_of(judging(old, zeros), tmp_path / 'out')
  names = [source.describe(i).split('/')[-2] for i in range(12)]
  assert source[names.index('02')]['label'] == 2
  named = run_of(*map(str, range(12)), classes=12)
  source = source_of(judging(named, numbers), tmp_path / 'out')
  names = [source.describe(i).split('/')[-2] for i in range(12)]
  assert source[names.index('10')]['label'] == 10


@pytest.mark.slow
def test_an_attack_counts_and_names_labels_that_are_no_class(
  config, in_memory, model_of, opened, tmp_path
):
  model, params = model_of(config)
  source = in_memory(9)
  source.labels[[2, 5]] = (-1, 4)
  unfinished = Unfinished(None, identity(config, 3, None, source))
  with pytest.raises(UserError, match="example [25] .*on_unlabelled='skip'"):
    Attacker(model, config)(params, source, unfinished)
  config.data.on_unlabelled = 'skip'
  found = Attacker(model, config)(params, source, unfinished)
  shown = findings.findings(found, attack.asked(config), source.class_names)
  job.write(opened(config, source, model, params, tmp_path), shown)
  results = read_results(tmp_path)
  assert results['data']['examples'] == 7
  assert results['data']['skipped'] == {
    'count': 2,
    'names': [
      f'example {i}: its label {label} is none of the 4 classes 0 to 3'
      for i, label in ((2, -1), (5, 4))
    ],
  }
  good = np.delete(np.arange(9), [2, 5])
  x = jnp.asarray(source.images[good] / np.float32(255))
  logits, _ = jax.jit(model.apply)(params, x)
  right = np.asarray(logits.argmax(-1)) == source.labels[good]
  assert results['summary']['clean_accuracy']['value'] == np.mean(right)


def test_names_do_not_mend_another_number_of_classes(config, in_memory):
  config.model.num_classes = 5
  with pytest.raises(UserError, match='config.model.num_classes=5 does not'):
    check_fit(config, in_memory(4))


def warnings_of(config, workdir):
  with job.open_job(config, workdir, findings.render) as found:
    return ' '.join(found.warnings)


def test_images_that_were_trained_on_are_told(run_of, tmp_path):
  names = ('apple', 'frog', 'whale')
  folder = image_folder(tmp_path / 'images', *names)
  image_folder(folder, *names, split='train', count=4)
  run = run_of(*names, dir=str(folder), split='train[:10]')
  config = judging(run, folder)
  assert not warnings_of(config, tmp_path / 'out')
  config.data.split = 'train[5:]+test'
  told = warnings_of(config, tmp_path / 'out')
  assert "5 of the 25 examples of 'train[5:]+test' are of 'train[:10]'" in told
  # In another folder there may be other images of these numbers.
  config.data.dir = str(folder.rename(tmp_path / 'others'))
  assert not warnings_of(config, tmp_path / 'out')


def test_data_of_fewer_classes_are_told(run, tmp_path):
  folder = image_folder(tmp_path / 'images', 'frog', 'whale')
  told = warnings_of(judging(run, folder), tmp_path / 'out')
  assert 'have 2 of the 3 classes of the model' in told
  image_folder(folder, 'apple')
  assert not warnings_of(judging(run, folder), tmp_path / 'out')
