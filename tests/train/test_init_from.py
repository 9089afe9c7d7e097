"""Starting from the weights of others, through the trainer's own state."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmoe_robust import checkpoint, presets
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import flat
from vmoe_robust.config import UserError
from vmoe_robust.models import build, unbox
from vmoe_robust.train.init_from import start_from

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
RELEASED = {
  'Encoder/': 'Transformer/',
  'SelfAttention': 'MultiHeadDotProductAttention_1',
  'LayerNorm_1': 'LayerNorm_2',
  '/Mlp/': '/MlpBlock_3/',
}


def config_of(**fields):
  config = config_lib.default()
  config.model.update(dict(patch=4, hidden=16, layers=2, heads=2, mlp=24))
  config.model.update(dict(num_classes=10, channels=3))
  config.data.image_size = 8
  config.update_from_flattened_dict(fields)
  return config


def boxed_of(config, mesh):
  size = config.data.image_size
  model = build(config.model, (size, size, config.model.channels), mesh)
  return jax.eval_shape(model.init, jax.random.key(0))


def shapes_of(config):
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  return checkpoint.shapes_of(unbox(boxed_of(config, mesh)))


def weights_of(config, seed, shape=(1, 1, 1)):
  """Random weights in their places; no two are alike."""
  mesh = mesh_lib.create(shape, jax.devices()[: int(np.prod(shape))])
  boxed = boxed_of(config, mesh)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf, place: jax.device_put(
      rng.standard_normal(leaf.shape).astype(np.float32), place
    ),
    unbox(boxed),
    mesh_lib.tree_shardings(boxed, mesh, mesh_lib.rules()),
  )


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """A ViT under the names of released files."""
  path, arrays = tmp_path_factory.mktemp('released') / 'vit.npz', {}
  for name, leaf in flat(weights_of(config_of(), 0)).items():
    for here, there in RELEASED.items():
      name = name.replace(here, there)
    arrays[name] = np.asarray(leaf)
  np.savez(path, **arrays)
  return path, arrays


def started(config, released, workdir, names=(), **options):
  config.init_from = str(released[0])
  fresh = weights_of(config, 1, **options)
  return flat(fresh), flat(start_from(config, fresh, workdir, names))


def report(workdir):
  return json.loads((workdir / 'init_from.json').read_text())


def test_a_dense_vit_becomes_a_sparse_one(released, tmp_path, capsys):
  config = config_of(
    **{'model.experts': 4, 'model.moe_every': 2, 'model.num_classes': 3},
    **{'data.image_size': 16},
  )
  fresh, found = started(config, released, tmp_path, shape=(2, 4, 1))
  there = released[1]
  for layer in ('Dense_0', 'Dense_1'):
    for leaf in ('kernel', 'bias'):
      mlp = there[f'Transformer/encoderblock_1/MlpBlock_3/{layer}/{leaf}']
      experts = found[f'Encoder/encoderblock_1/Moe/Mlp/{layer}/{leaf}']
      np.testing.assert_array_equal(
        experts, np.broadcast_to(mlp, (4, *mlp.shape))
      )
      assert experts.sharding.spec[0] == 'expert'
  np.testing.assert_array_equal(
    found['Encoder/encoderblock_0/Mlp/Dense_0/kernel'],
    there['Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'],
  )
  positions = 'Encoder/posembed_input/pos_embedding'
  assert found[positions].shape == (1, 17, 16)
  for name in ('head/kernel', 'Encoder/encoderblock_1/Moe/Router/dense/kernel'):
    np.testing.assert_array_equal(found[name], fresh[name])
  listed = report(tmp_path)
  ways = [one['how'] for one in listed['weights'].values()]
  count = {way: ways.count(way) for way in sorted(set(ways))}
  assert count == dict(fresh=3, loaded=3, renamed=30, resized=1, upcycled=4)
  assert listed['weights'][positions] == {
    'how': 'resized',
    'from': 'Transformer/posembed_input/pos_embedding',
    'shape': [1, 17, 16],
    'shape_there': [1, 5, 16],
  }
  assert listed['left_over'] == {'head/kernel': [16, 10], 'head/bias': [10]}
  said = capsys.readouterr().out
  assert len(said.splitlines()) < 15
  for words in (
    'upcycled',
    'Encoder/encoderblock_{1}/Moe/Mlp',
    'left over',
    'head',
  ):
    assert words in said


def test_what_nobody_asked_for_stops_the_run(released, tmp_path):
  deeper = config_of(**{'model.layers': 3})
  with pytest.raises(UserError) as stop:
    started(deeper, released, tmp_path)
  message = str(stop.value)
  assert 'it lacks Encoder/encoderblock_{2}/LayerNorm_0, ' in message
  assert '1 more' in message and 'config.init_from_except' in message
  assert '\n' not in message and not list(tmp_path.iterdir())
  shallower = config_of(**{'model.layers': 1})
  with pytest.raises(UserError, match='it alone has Encoder/encoderblock_.1'):
    started(shallower, released, tmp_path)
  wider = config_of(**{'model.mlp': 32})
  with pytest.raises(UserError, match=r'\(16, 24\) in it and \(16, 32\) in'):
    started(wider, released, tmp_path)


def test_what_is_named_is_not_taken(released, tmp_path):
  config = config_of(**{'model.layers': 3})
  config.init_from_except = ('Encoder/encoderblock_2', 'head')
  fresh, found = started(config, released, tmp_path)
  for name, value in found.items():
    same = np.array_equal(value, fresh[name])
    assert same == name.startswith(config.init_from_except), name
  config.init_from_except += ('haed',)
  with pytest.raises(UserError, match="init_from_except='haed' names no"):
    started(config, released, tmp_path)


def test_noise_of_no_expert_is_refused(released, tmp_path):
  config = config_of()
  config.init_from_noise = 0.01
  with pytest.raises(UserError, match='init_from_noise=0.01 is of experts'):
    started(config, released, tmp_path)


def test_noise_makes_experts_differ(released, tmp_path):
  config = config_of(**{'model.experts': 4, 'model.moe_every': 2})
  config.init_from_noise = 0.01
  _, found = started(config, released, tmp_path)
  kernel = np.asarray(found['Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel'])
  assert 0 < np.abs(kernel[0] - kernel[1]).max() < 0.2 * kernel.std()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'size', 'blocks', 'more'),
  [
    # As google-research/vmoe describes what it released.
    ('s32', 'S/32', (5, 7), {'pre_logits': 512, 'num_classes': 1000}),
    ('b16', 'B/16', (1, 3, 5, 7, 9, 11), {'num_classes': 21_843}),
  ],
)
def test_the_official_checkpoints_fit_their_configs(name, size, blocks, more):
  path = CONFIGS / f'finetune_vmoe_{name}.py'
  config = runpy.run_path(str(path))['get_config']()
  config.model.update(num_classes=1000, channels=3)
  released = config_of(**{f'model.{n}': value for n, value in more.items()})
  released.model.update(presets.model_size(size), moe_blocks=blocks, experts=8)
  released.data.image_size = 224
  there, wanted = shapes_of(released), shapes_of(config)
  found = checkpoint.plan(there, wanted, excepted=config.init_from_except)
  assert not found.unexpected
  ways = {n: way for n, way in found.how.items() if way != 'loaded'}
  positions = 'Encoder/posembed_input/pos_embedding'
  heads = {'head/kernel': 'fresh', 'head/bias': 'fresh'}
  assert ways == heads | {positions: 'resized'}


def own(config, path):
  """Weights of ours, with their configuration."""
  arrays = {k: np.asarray(v) for k, v in flat(weights_of(config, 0)).items()}
  save_file(
    arrays, path, metadata={'vmoe_robust.config': config_lib.to_json(config)}
  )
  return arrays


def test_a_head_of_another_kind_stays_fresh(tmp_path, capsys):
  there = own(config_of(**{'model.head': 'token'}), tmp_path / 'w.safetensors')
  config = config_of(**{'model.head': 'gap'})
  config.init_from = str(tmp_path / 'w.safetensors')
  fresh = weights_of(config, 1)
  names = tuple(f'class {i}' for i in range(10))
  found = flat(start_from(config, fresh, tmp_path, names))
  name = 'head/kernel'
  np.testing.assert_array_equal(found[name], flat(fresh)[name])
  other = 'Encoder/encoder_norm/scale'
  np.testing.assert_array_equal(found[other], there[other])
  assert 'The head is new: images are pooled' in capsys.readouterr().out


@pytest.mark.parametrize('width', [0, 16])
def test_a_head_behind_another_layer_stays_fresh(tmp_path, capsys, width):
  """Of the same width, so that the head would fit."""
  there = config_of(**{'model.pre_logits': 16 - width})
  own(there, tmp_path / 'w.safetensors')
  config = config_of(**{'model.pre_logits': width})
  config.init_from = str(tmp_path / 'w.safetensors')
  config.init_from_except = ('pre_logits',)
  fresh = weights_of(config, 1)
  found = flat(start_from(config, fresh, tmp_path, ()))
  for name in ('head/kernel', 'head/bias'):
    np.testing.assert_array_equal(found[name], flat(fresh)[name])
  assert 'a layer (pre_logits) before it came' in capsys.readouterr().out


def test_what_shapes_do_not_tell_is_said(tmp_path, capsys):
  sparse = {'model.experts': 4, 'model.moe_every': 2}
  trained = config_of(
    **sparse,
    **{'model.mean': (0.4,) * 3, 'model.router.gate': 'sigmoid'},
  )
  own(trained, tmp_path / 'w.safetensors')
  config = config_of(**sparse)
  config.init_from = str(tmp_path / 'w.safetensors')
  start_from(config, weights_of(config, 1), tmp_path, ())
  said = capsys.readouterr().out
  assert 'config.model.mean=(0.5,' in said and '(0.4, 0.4, 0.4)' in said
  assert "config.model.router.gate='softmax', and 'sigmoid' where" in said


@pytest.mark.parametrize(
  ('router', 'is_said'), [('top_k', 0), ('expert_choice', 1)]
)
def test_how_many_tokens_experts_choose_is_said(
  router, is_said, tmp_path, capsys
):
  sparse = {
    'model.experts': 4,
    'model.moe_every': 2,
    'model.router.name': router,
  }
  room = {'model.router.capacity_factor': 2.0}
  own(config_of(**sparse, **room), tmp_path / 'w.safetensors')
  config = config_of(**sparse)
  config.init_from = str(tmp_path / 'w.safetensors')
  start_from(config, weights_of(config, 1), tmp_path, ())
  words = 'config.model.router.capacity_factor=1.05, and 2.0 where the weights'
  assert capsys.readouterr().out.count(words) == is_said
