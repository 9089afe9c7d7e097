"""The notebooks run from top to bottom, and are kept without their outputs."""

import html
import pathlib
import re

import jax
import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from matplotlib import pyplot
from nbclient import NotebookClient
from PIL import Image

from tests.environment import child
from vmoe_robust import checkpoint, mesh
from vmoe_robust import config as config_lib
from vmoe_robust.models import build, unbox

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / 'notebooks'
NAMES = ('evaluate_checkpoint', 'experts_under_attack', 'first_steps')


def read(name):
  return nbformat.read(NOTEBOOKS / f'{name}.ipynb', as_version=4)


@pytest.fixture
def notebook():
  return read('evaluate_checkpoint')


def execute(notebook, folder, **parameters):
  """Runs it on the CPU as Colab would, with other values in its first cell."""
  (cell,) = (
    cell
    for cell in notebook.cells
    if 'parameters' in cell.metadata.get('tags', ())
  )
  cell.source += ''.join(f'\n{n} = {v!r}' for n, v in parameters.items())
  client = NotebookClient(
    notebook, timeout=900, resources={'metadata': {'path': str(folder)}}
  )
  client.execute(env=child(PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'))
  outputs = [out for c in notebook.cells for out in c.get('outputs', ())]
  said = ''.join(out.text for out in outputs if out.output_type == 'stream')
  pictures = [out for out in outputs if 'image/png' in out.get('data', {})]
  return said, pictures


def test_every_notebook_is_known():
  assert sorted(path.stem for path in NOTEBOOKS.glob('*.ipynb')) == [*NAMES]


@pytest.mark.parametrize('name', NAMES)
def test_it_is_short_and_has_no_outputs(name):
  notebook = read(name)
  assert len(notebook.cells) < 10
  assert not any(cell.get('outputs') for cell in notebook.cells)
  assert 'colab.research.google.com/assets/colab-badge.svg' in str(notebook)
  # The address of the repository is in one variable, which pip is given.
  code = '\n'.join(c.source for c in notebook.cells if c.cell_type == 'code')
  assert code.count("SOURCE = ''") == 1 and '@ {SOURCE}' in code
  assert 'https://github.com' not in code


@pytest.mark.slow
def test_digits_are_trained_looked_at_and_attacked(notebook, tmp_path):
  said, pictures = execute(
    notebook, tmp_path, STEPS=120, IMAGES=32, RADII=(4, 64)
  )
  assert len(pictures) == 4
  assert (tmp_path / 'runs' / 'digits_120' / 'checkpoints' / '120').exists()
  accuracy = lambda name: float(re.search(f'{name} ([0-9.]+)%', said)[1])
  assert accuracy('accuracy') > 25
  assert accuracy('accuracy') >= accuracy('4/255:') > accuracy('64/255:')


@pytest.mark.slow
def test_weights_of_others_see_photographs(notebook, tmp_path):
  weights = ROOT / 'tests' / 'golden' / 'vit_small_released_names.npz'
  said, pictures = execute(
    notebook, tmp_path, CHECKPOINT=str(weights), RADII=(64,)
  )
  assert len(pictures) == 3  # no experts
  assert 'accuracy 100.0%' in said


def pages(notebook):
  """The reports that a notebook shows, as text."""
  shown = [
    out.data['text/html']
    for cell in notebook.cells
    for out in cell.get('outputs', ())
    if 'text/html' in out.get('data', {})
  ]
  return [html.unescape(one) for one in shown]


@pytest.mark.slow
def test_first_steps_and_then_studies(tmp_path):
  """The studies ask the V-MoE that the first notebook trained."""
  first = read('first_steps')
  said, _ = execute(
    first, tmp_path, STEPS=20, IMAGES=16, RADII=(64,), ATTACK_STEPS=2
  )
  assert '16 examples of digits test[:16]' in said
  (page,) = pages(first)
  assert 'vit_20_pgd (A) against moe_20_pgd (B)' in page
  assert 'patches that changed experts in' in page
  second = read('experts_under_attack')
  _, pictures = execute(
    second,
    tmp_path,
    CHECKPOINT='runs/moe_20',
    STUDIES=('routing_change',),
    IMAGES=16,
    RADII=(64,),
    ATTACK_STEPS=2,
  )
  assert len(pictures) == 2  # the curve, and images with changed tokens
  (page,) = pages(second)
  assert '1 - IoU of the selected experts' in page


@pytest.fixture
def colours(tmp_path):
  """A small model as it was drawn, of a folder of images in three colours."""
  config = config_lib.default()
  config.data.update(dict(name='folder', dir=str(tmp_path / 'images')))
  config.data.update(dict(image_size=8, resize=10))
  config.model.update(dict(patch=4, hidden=8, layers=1, heads=2, mlp=8))
  config.model.update(dict(num_classes=3, channels=3, experts=2, moe_every=1))
  for colour in ('blue', 'green', 'red'):
    folder = tmp_path / 'images' / 'test' / colour
    folder.mkdir(parents=True)
    for i in range(6):
      Image.new('RGB', (20 + i, 15), colour).save(folder / f'{i}.png')
  devices = mesh.create((1, 1, 1), jax.devices()[:1])
  params = unbox(
    jax.jit(build(config.model, (8, 8, 3), devices).init)(jax.random.key(0))
  )
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run', config.save)
  checkpoints.save(1, {'params': params}, {})
  checkpoints.close()
  checkpoint.save_config(tmp_path / 'run', config)
  return tmp_path / 'run'


def experts_drawn(notebook, experts, chosen):
  """The picture of the cell on routing, of one image with these experts."""

  class Told:
    config = config_lib.default()

    def routing(self, images):
      return {'encoderblock_1': np.array(chosen)[None, :, None]}

  Told.config.model.update(dict(experts=experts, head='gap'))
  (cell,) = (c for c in notebook.cells if 'clf.routing' in c.source)
  images = np.zeros((1, 8, 8, 1), np.uint8)
  values = dict(clf=Told(), images=images, shown=[0], plt=pyplot)
  exec(cell.source, values)
  (drawn,) = values['axes'][1, 0].images
  return drawn.to_rgba(drawn.get_array()).reshape(-1, 4)


@pytest.mark.parametrize('experts', [2, 8, 16, 32])
def test_each_expert_has_a_colour_of_its_own(notebook, experts):
  """And a token that no expert took has none of them."""
  side = 6
  chosen = np.resize(np.arange(-1, experts), side * side)
  colours = experts_drawn(notebook, experts, chosen)
  assert len(np.unique(colours, axis=0)) == len(np.unique(chosen))
  assert (colours[chosen == -1] == 1).all()  # white
  pyplot.close('all')


@pytest.mark.slow
def test_encoded_images_are_seen(notebook, colours, capsys):
  values = {}
  for cell in notebook.cells[:6]:  # but for the attack
    if cell.cell_type == 'code':
      exec(TransformerManager().transform_cell(cell.source), values)
    if 'parameters' in cell.metadata.get('tags', ()):
      values.update(CHECKPOINT=str(colours), IMAGES=18)
  assert sorted(values['labels'].tolist()) == 6 * [0] + 6 * [1] + 6 * [2]
  assert values['images'].shape == (18, 8, 8, 3)
  main = np.array([2, 1, 0])[values['labels']]  # blue, green, red
  assert (values['images'].mean((1, 2)).argmax(-1) == main).all()
  assert 'accuracy 33.3%' in capsys.readouterr().out
  looks, experts = map(pyplot.figure, pyplot.get_fignums())
  assert [ax.get_title() for ax in looks.axes] == ['blue: 33%'] * 8
  assert len(experts.axes) == 2 * 8 + 1
  pyplot.close('all')
