"""`vmoe_robust.load` and what it returns."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vmoe_robust
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint.export import export
from vmoe_robust.config import UserError
from vmoe_robust.models import build, unbox

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
SHARED = pathlib.Path('/work/shared/golden')
BLOCKS = ('encoderblock_1', 'encoderblock_3')
ONE = {}  # device
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'vmoe_small.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def official(golden, tmp_path_factory):
  """The weights of the official V-MoE alone, under its names."""
  path = tmp_path_factory.mktemp('official') / 'vmoe.npz'
  prefix = 'params/'
  np.savez(
    path,
    **{
      name.removeprefix(prefix): value
      for name, value in golden.items()
      if name.startswith(prefix)
    },
  )
  return path


def save(workdir, **fields):
  """A run's workdir with a small V-MoE as it was drawn, at steps 1 and 2."""
  config = config_lib.default()
  config.model.update(
    dict(patch=4, hidden=16, layers=2, heads=2, mlp=16, num_classes=4)
  )
  config.model.update(dict(channels=1, experts=4, moe_every=2, head='gap'))
  config.model.router.selected = 2
  config.update_from_flattened_dict(fields)
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  model = build(config.model, (8, 8, 1), mesh)
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  for step in (1, 2):
    params = unbox(jax.jit(model.init)(jax.random.key(step)))
    rng = np.random.default_rng(step)
    head = params['head']['kernel']
    params['head']['kernel'] = rng.standard_normal(head.shape).astype('f')
    checkpoints.save(step, {'params': params}, {})
  checkpoints.close()
  checkpoint.save_config(workdir, config)
  return model, params


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, *save(workdir)


@pytest.mark.slow
def test_official_weights_give_the_official_logits_and_experts(
  golden, official
):
  images = (golden['images'] + 1) / 2
  for k in (1, 2):
    clf = vmoe_robust.load(official, num_selected=k, mesh=ONE)
    # With so much capacity nothing is dropped.
    expected = f'K{k}_bpr0_cf8.0'
    np.testing.assert_allclose(
      clf(images), golden[f'{expected}/logits'], atol=2e-6
    )
    found = clf.routing(images)
    assert set(found) == set(BLOCKS)
    for block in BLOCKS:
      indices = golden[f'{expected}/indices/Encoder/{block}/Moe/Router']
      chosen = indices[..., 0].reshape(found[block].shape)
      np.testing.assert_array_equal(found[block], chosen)
  assert clf.step is None and clf.config.data.name == ''


def test_two_experts_a_token_where_weights_do_not_tell(official):
  clf = vmoe_robust.load(official)
  assert clf.config.model.router.selected == 2
  assert clf.config.data.image_size == 16


@pytest.mark.skipif(not SHARED.exists(), reason='no official checkpoint here')
def test_an_official_checkpoint(golden):
  clf = vmoe_robust.load(SHARED / 'vmoe_small_checkpoint' / 'params', mesh=ONE)
  np.testing.assert_allclose(
    clf((golden['images'] + 1) / 2), golden['K2_bpr0_cf8.0/logits'], atol=2e-6
  )


def test_a_released_vit():
  clf = vmoe_robust.load(GOLDEN / 'vit_small_released_names.npz')
  with np.load(GOLDEN / 'vit_small_expected.npz') as expected:
    images = (expected['images'] + 1) / 2
    np.testing.assert_allclose(clf(images), expected['logits'], atol=2e-6)
  assert clf.routing(images) == {}


def test_weights_of_no_known_model(official, tmp_path):
  with np.load(official) as file:
    arrays = dict(file) | {'conv_root/kernel': np.zeros((3, 3))}
  np.savez(tmp_path / 'hybrid.npz', **arrays)
  with pytest.raises(
    UserError, match=r'conv_root/kernel is \(3, 3\).*only ViT'
  ):
    vmoe_robust.load(tmp_path / 'hybrid.npz', mesh=ONE)


@pytest.mark.slow
def test_a_run_and_its_steps(run):
  workdir, model, params = run
  clf = vmoe_robust.load(workdir, mesh=ONE)
  logits, _ = jax.jit(model.apply)(params, jnp.asarray(IMAGES) / 255)
  np.testing.assert_allclose(clf(IMAGES), logits, atol=1e-5)
  assert clf.step == 2 and clf.where == str(workdir)
  first = vmoe_robust.load(workdir, step=1, mesh=ONE)
  same = vmoe_robust.load(workdir / 'checkpoints' / '1', mesh=ONE)
  np.testing.assert_array_equal(first(IMAGES), same(IMAGES))
  assert np.abs(first(IMAGES) - clf(IMAGES)).max() > 0.1
  with pytest.raises(UserError, match=r'path=.*steps \[1, 2\]'):
    vmoe_robust.load(workdir, step=3)


@pytest.mark.slow
def test_an_exported_run(run, tmp_path):
  path = tmp_path / 'run.safetensors'
  with contextlib.closing(checkpoint.open_weights(run[0])) as weights:
    export(weights, path)
  clf, same = (vmoe_robust.load(p, mesh=ONE) for p in (path, run[0]))
  np.testing.assert_array_equal(clf(IMAGES), same(IMAGES))
  assert clf.config == same.config and clf.step == same.step


@pytest.mark.parametrize(
  ('field', 'value', 'what'),
  [
    ('model.heads', 0, 'config.model.heads=0'),
    ('model.compute_dtype', 'int3', "config.model.compute_dtype='int3'"),
    ('model.std', (0.0,), 'config.model.std='),
    ('model.std', (float('inf'),), 'config.model.std='),
    ('model.mean', (float('nan'),), 'config.model.mean='),
    ('data.image_size', 9, 'config.data.image_size=9 is not divisible'),
  ],
)
def test_a_file_with_a_configuration_of_no_model(
  run, tmp_path, field, value, what
):
  path = tmp_path / 'run.safetensors'
  with contextlib.closing(checkpoint.open_weights(run[0])) as weights:
    config = weights.config.copy_and_resolve_references()
    with config.ignore_type():
      config.update_from_flattened_dict({field: value})
    weights.config = config
    export(weights, path)
  with pytest.raises(UserError, match=f"path='{path}': {what}"):
    vmoe_robust.load(path, mesh=ONE)


def test_any_number_of_images_and_either_type(run):
  clf = vmoe_robust.load(run[0], mesh=ONE)
  logits = clf(IMAGES)
  assert logits.shape == (11, 4)
  for count in (1, 8, 9):
    np.testing.assert_allclose(clf(IMAGES[:count]), logits[:count], atol=1e-5)
  floats = jnp.asarray(IMAGES) / 255
  np.testing.assert_allclose(clf(floats), logits, atol=1e-5)
  many = np.concatenate(7 * [IMAGES])  # more than one call of the program
  np.testing.assert_allclose(clf(many), np.tile(logits, (7, 1)), atol=1e-5)
  assert clf.routing(many)['encoderblock_1'].shape == (77, 4, 2)


def test_one_image_never_changes_anothers_prediction(run):
  clf, others = vmoe_robust.load(run[0]), IMAGES.copy()
  others[1:] = 255 - others[1:]
  np.testing.assert_array_equal(clf(IMAGES)[0], clf(others)[0])
  np.testing.assert_array_equal(
    clf.routing(IMAGES)['encoderblock_1'][0],
    clf.routing(others)['encoderblock_1'][0],
  )


@pytest.mark.parametrize(
  'sizes',
  [
    {'data': 2, 'expert': 4},
    pytest.param({'model': 2, 'expert': 2}, marks=pytest.mark.slow),
    pytest.param((2, 2, 2), marks=pytest.mark.slow),  # a mesh of the user's
  ],
  ids=str,
)
def test_meshes_do_not_change_logits(run, sizes):
  if isinstance(sizes, tuple):
    sizes = jax.make_mesh(sizes, ('data', 'expert', 'model'))
  expected = vmoe_robust.load(run[0], mesh=ONE)(IMAGES)
  clf = vmoe_robust.load(run[0], mesh=sizes)
  np.testing.assert_allclose(clf(IMAGES), expected, atol=1e-5)
  given = dict(getattr(sizes, 'shape', sizes))
  assert dict(clf.mesh.shape) == {'data': 1, 'expert': 1, 'model': 1} | given


@pytest.mark.parametrize(
  ('mesh', 'words'),
  [
    ({'experts': 2}, 'axes.*experts.*expert'),
    (8, r"axes \('data',\); they are"),
    ({'data': 16}, '16 devices; there are 8'),
    ({'expert': 3}, 'config.mesh.expert=3 does not divide .*use 1, 2 or 4'),
    ({'model': 4}, 'config.model.heads=2'),
    ({'data': 0}, '0 devices'),
  ],
)
def test_meshes_that_do_not_fit(run, mesh, words):
  if mesh == 8:
    mesh = jax.make_mesh((8,), ('data',))
  with pytest.raises(UserError, match=words):
    vmoe_robust.load(run[0], mesh=mesh)


def test_images_that_do_not_fit(run):
  clf = vmoe_robust.load(run[0])
  cases = [
    (IMAGES[0], r'shape \(8, 8, 1\); give \[batch'),
    (IMAGES[:0], 'one image at least'),
    (IMAGES[:, :4], r'\[4, 8, 1\]; the model takes \[8, 8, 1\].*resize'),
    (np.moveaxis(IMAGES, -1, 1), r'\[1, 8, 8\]; the .*move the channels last'),
    (np.zeros((2, 1, 9, 9)), r'\[1, 9, 9\]; the .*move the channels last'),
    (np.zeros((2, 8, 8, 3)), r'\[8, 8, 3\]; the .*give them 1 channels'),
    (IMAGES.astype(np.float32), 'between 0.0 and 255.0; give pixels in'),
    (IMAGES / 255 - 0.5, 'give pixels in'),
  ]
  for images, words in cases:
    with pytest.raises(UserError, match=words):
      clf(images)


@pytest.mark.slow
def test_another_number_of_experts_a_token(run, tmp_path):
  clf = vmoe_robust.load(run[0], num_selected=3, mesh=ONE)
  found = clf.routing(IMAGES)['encoderblock_1']
  assert found.shape == (11, 4, 3)
  two = vmoe_robust.load(run[0], mesh=ONE).routing(IMAGES)['encoderblock_1']
  np.testing.assert_array_equal(found[..., :2], two)
  with pytest.raises(UserError, match='num_selected=5 .*use 1 to 4'):
    vmoe_robust.load(run[0], num_selected=5)
  with pytest.raises(UserError, match='num_selected=2 .*leave it out'):
    vmoe_robust.load(GOLDEN / 'vit_small_released_names.npz', num_selected=2)


@pytest.mark.slow
@pytest.mark.parametrize('router', ['expert_choice', 'soft'])
def test_routing_of_other_routers(tmp_path, router):
  save(tmp_path, **{'model.router.name': router})
  found = vmoe_robust.load(tmp_path, mesh=ONE).routing(IMAGES)['encoderblock_1']
  if router == 'soft':
    assert found.shape == (11, 4, 1) and set(found.flat) <= {0, 1, 2, 3}
    return
  assert found.shape == (11, 4, 4)
  picks = (found >= 0).sum(-1)
  assert picks.sum() == 11 * 4 * 3  # ceil(4 * 2 * 1.05 / 4) of each expert
  # First those that picked the token, then none.
  np.testing.assert_array_equal(found >= 0, np.arange(4) < picks[..., None])
