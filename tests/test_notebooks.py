"""The notebooks run from top to bottom, and are kept without their outputs."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'notebooks' / 'evaluate_checkpoint.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder, **parameters):
  """Runs it on the CPU as Colab would, with other values in its first cell."""
  (cell,) = (
    cell
    for cell in notebook.cells
    if 'parameters' in cell.metadata.get('tags', ())
  )
  cell.source += ''.join(f'\n{n} = {v!r}' for n, v in parameters.items())
  client = NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(folder)}}
  )
  # Most of the time is compiling programs that run once.
  flags = {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  environment = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'} | flags
  client.execute(env=os.environ | environment)
  outputs = [out for c in notebook.cells for out in c.get('outputs', ())]
  said = ''.join(out.text for out in outputs if out.output_type == 'stream')
  pictures = [out for out in outputs if 'image/png' in out.get('data', {})]
  return said, pictures


def test_it_is_short_and_has_no_outputs(notebook):
  assert len(notebook.cells) < 10
  assert not any(cell.get('outputs') for cell in notebook.cells)
  assert 'colab.research.google.com/assets/colab-badge.svg' in str(notebook)


def test_digits_are_trained_looked_at_and_attacked(notebook, tmp_path):
  said, pictures = execute(
    notebook, tmp_path, STEPS=120, IMAGES=32, RADII=(4, 64)
  )
  assert len(pictures) == 4
  assert (tmp_path / 'runs' / 'digits_120' / 'checkpoints' / '120').exists()
  accuracy = lambda name: float(re.search(f'{name} ([0-9.]+)%', said)[1])
  assert accuracy('accuracy') > 25
  assert accuracy('accuracy') >= accuracy('4/255:') > accuracy('64/255:')


def test_weights_of_others_see_photographs(notebook, tmp_path):
  weights = ROOT / 'tests' / 'golden' / 'vit_small_released_names.npz'
  said, pictures = execute(
    notebook, tmp_path, CHECKPOINT=str(weights), RADII=(64,)
  )
  assert len(pictures) == 3  # no experts
  assert 'accuracy 100.0%' in said
