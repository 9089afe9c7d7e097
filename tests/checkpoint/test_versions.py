"""A run that was saved before configurations had a version still opens."""

import json
import pathlib
import zipfile

import numpy as np
import pytest

import vmoe_robust
from vmoe_robust.checkpoint import __main__ as command
from vmoe_robust.checkpoint import open_weights, read_config

RUN = pathlib.Path(__file__).parents[1] / 'golden' / 'run_version_0.zip'


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home folder with the run in `~/run`."""
  zipfile.ZipFile(RUN).extractall(tmp_path / 'run')
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize('where', ['~/run', '~/run/checkpoints/20'])
def test_its_logits_are_what_they_were(home, where):
  saved = json.loads((home / 'run' / 'config.json').read_text())
  assert 'version' not in saved and 'corrupt' in saved
  known = np.load(home / 'run' / 'logits.npz')
  classifier = vmoe_robust.load(where)
  found = classifier(known['images'])
  np.testing.assert_allclose(found, known['logits'], rtol=0, atol=2e-6)
  assert classifier.step == 20


def test_the_commands_open_it_below_the_home_folder(home, capsys):
  assert command.main(['verify', '~/run']) == 0
  assert command.main(['verify', '~/run/checkpoints/20']) == 0
  assert 'damaged' not in capsys.readouterr().out
  assert command.main(['export', '~/run', '~/out/moe.safetensors']) == 0
  exported = open_weights('~/out/moe.safetensors')
  assert exported.config == read_config('~/run')
  assert {p.name for p in home.iterdir()} == {'run', 'out'}
