import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vmoe_robust
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.data import open_source
from vmoe_robust.train import loop

DENSE = (
  pathlib.Path(__file__).parents[1] / 'docs/results/digits/dense.safetensors'
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = config_lib.default()
  config.model.update(dict(hidden=16, layers=1, heads=2, mlp=16))
  config.train.update(dict(steps=60, batch_size=64))
  config.train.optimizer.learning_rate = 0.01
  config.attack.at_end = False
  workdir = tmp_path_factory.mktemp('run')
  loop.run(config, str(workdir))
  return workdir


def digits(count):
  source = open_source(config_lib.default().data, 'test')
  examples = [source[i] for i in range(count)]
  labels = np.array([example['label'] for example in examples])
  return np.stack([example['image'] for example in examples]), labels


@pytest.mark.slow
def test_a_notebook_in_two_lines(run):
  classifier = vmoe_robust.load(run)
  images, labels = digits(30)
  attacked = lambda eps: vmoe_robust.robust_accuracy(
    classifier, images, labels, attack='pgd', eps=eps, iterations=5
  )
  apply = jax.jit(classifier.model.apply)
  logits, _ = apply(classifier.params, jnp.asarray(images) / 255)
  right = np.asarray(logits.argmax(-1)) == labels
  little, much = attacked(0.1), attacked(0.5)
  assert little.clean_accuracy == pytest.approx(right.mean())
  assert little.clean_accuracy > 0.3 > much.accuracy
  assert little.clean_accuracy >= little.accuracy >= much.accuracy


def test_wrong_images_are_refused():
  classifier = vmoe_robust.load(DENSE)
  images, labels = digits(4)
  with pytest.raises(UserError, match=r'\[4, 8, 1\]; the model takes'):
    vmoe_robust.robust_accuracy(classifier, images[:, :4], labels)


@pytest.mark.slow
def test_the_package_imports_without_a_model():
  code = (
    'import sys, vmoe_robust\n'
    'assert "jax" not in sys.modules and "tensorflow" not in sys.modules\n'
    'from vmoe_robust import main\n'
    'assert "tensorflow" not in sys.modules\n'
    'assert "scipy.stats" not in sys.modules, "it takes half a second"\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
