import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from tests.checkpoint import official_writer
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.checkpoint.__main__ import main
from vmoe_robust.checkpoint.export import export
from vmoe_robust.config import UserError
from vmoe_robust.models import build, unbox

RELEASED = pathlib.Path(__file__).parents[1] / 'golden'
RELEASED /= 'vit_small_released_names.npz'
# What released files have besides their blocks, and in each block.
AROUND = """cls embedding/bias embedding/kernel head/bias head/kernel
Transformer/posembed_input/pos_embedding
Transformer/encoder_norm/bias Transformer/encoder_norm/scale"""
BLOCK = """LayerNorm_0/bias LayerNorm_0/scale LayerNorm_2/bias LayerNorm_2/scale
MlpBlock_3/Dense_0/bias MlpBlock_3/Dense_0/kernel
MlpBlock_3/Dense_1/bias MlpBlock_3/Dense_1/kernel
MultiHeadDotProductAttention_1/key/bias
MultiHeadDotProductAttention_1/key/kernel
MultiHeadDotProductAttention_1/out/bias
MultiHeadDotProductAttention_1/out/kernel
MultiHeadDotProductAttention_1/query/bias
MultiHeadDotProductAttention_1/query/kernel
MultiHeadDotProductAttention_1/value/bias
MultiHeadDotProductAttention_1/value/kernel"""


def released_names(blocks):
  names = set(AROUND.split())
  for i in range(blocks):
    names |= {f'Transformer/encoderblock_{i}/{n}' for n in BLOCK.split()}
  return names


def model_of(**fields):
  config = config_lib.default()
  config.data.image_size = 8
  config.model.update(dict(patch=4, hidden=16, layers=2, heads=2, mlp=24))
  config.model.update(dict(num_classes=5) | fields)
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  return config, build(config.model, (8, 8, 3), mesh)


def run_of(workdir, **fields):
  """A run's checkpoint: random weights, and others that are averaged."""
  config, model = model_of(**fields)
  shapes = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0))))
  draw = np.random.default_rng(0).normal
  fresh = lambda leaf: jnp.asarray(draw(0, 0.3, leaf.shape), leaf.dtype)
  params, ema = jax.tree.map(fresh, shapes), jax.tree.map(fresh, shapes)
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  checkpoints.save(1, {'params': params, 'ema': ema, 'rest': {'step': 1}}, {})
  checkpoints.close()
  checkpoint.save_config(workdir, config)
  return config, model, ema


def arrays_of(path):
  weights = open_weights(path)
  arrays = {name: weights.read(name) for name in weights.shapes}
  weights.close()
  return arrays


def tree_of(arrays):
  tree = {}
  for name, array in arrays.items():
    *parents, leaf = name.split('/')
    node = functools.reduce(lambda d, p: d.setdefault(p, {}), parents, tree)
    node[leaf] = array
  return tree


def same(path, arrays):
  found = arrays_of(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    assert found[name].tobytes() == np.asarray(array).tobytes()


@pytest.mark.slow
def test_a_run_as_safetensors(tmp_path, capsys):
  config, model, ema = run_of(tmp_path / 'run', experts=4, moe_every=2)
  out = tmp_path / 'new' / 'vmoe.safetensors'
  assert main(['export', str(tmp_path / 'run'), str(out)]) == 0
  assert f'{out}: 41 arrays of {tmp_path / "run"}' in capsys.readouterr().out
  weights = open_weights(out)
  assert weights.config == config and weights.renamed == {}
  assert weights.step == 1
  weights.close()
  same(out, arrays_of(tmp_path / 'run'))
  theirs = safetensors.numpy.load_file(out)  # its own library agrees
  assert theirs.keys() == arrays_of(out).keys()
  images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
  apply = jax.jit(functools.partial(model.apply, experts='dropless'))
  expected, _ = apply(ema, images)
  found, _ = apply(tree_of(arrays_of(out)), images)
  np.testing.assert_array_equal(found, expected)


def test_convolutions_go_to_safetensors_and_back(tmp_path):
  fields = dict(stem='conv', head='seqpool', layer_scale=0.1)
  config, _, ema = run_of(tmp_path / 'run', **fields)
  out = tmp_path / 'vit.safetensors'
  assert main(['export', str(tmp_path / 'run'), str(out)]) == 0
  weights = open_weights(out)
  assert weights.config == config and weights.step == 1
  weights.close()
  same(out, {'/'.join(path): leaf for path, leaf in flatten_dict(ema).items()})


def test_a_dense_run_as_npz(tmp_path):
  run_of(tmp_path / 'run')
  out = tmp_path / 'vit.npz'
  assert main(['export', str(tmp_path / 'run'), str(out)]) == 0
  with np.load(out) as file:
    assert set(file.files) == released_names(blocks=2)
  same(out, arrays_of(tmp_path / 'run'))


def test_a_released_file_there_and_back(tmp_path):
  with np.load(RELEASED) as file:
    released = dict(file)
  assert set(released) == released_names(blocks=3)
  through = tmp_path / 'vit.safetensors'
  export(open_weights(RELEASED), through)
  export(open_weights(through), tmp_path / 'vit.npz')
  with np.load(tmp_path / 'vit.npz') as file:
    assert set(file.files) == set(released)
    for name, array in released.items():
      assert file[name].tobytes() == array.tobytes()
      assert file[name].dtype == array.dtype


def test_every_type(tmp_path):
  arrays = {
    'half': np.arange(3, dtype=jnp.bfloat16),
    'flag': np.array([True, False, True]),
    'wide': np.arange(5.0).reshape(5, 1),
    'scalar': np.array(7, np.int32),
  }
  official_writer.write(tmp_path / 'p', arrays, dict.fromkeys(arrays, 0))
  out = tmp_path / 'a.safetensors'
  export(open_weights(tmp_path / 'p'), out)
  same(out, arrays)
  weights = open_weights(out)
  assert weights.config is None
  part = (slice(1, 3), slice(None))
  np.testing.assert_array_equal(
    weights.read('wide', part), arrays['wide'][part]
  )
  released = {'cls': arrays['half']}
  released['Encoder/posembed_input/pos_embedding'] = arrays['wide']
  official_writer.write(tmp_path / 'q', released, dict.fromkeys(released, 0))
  export(open_weights(tmp_path / 'q'), tmp_path / 'a.npz')
  same(tmp_path / 'a.npz', released)


def test_one_array_at_a_time(tmp_path, peak_of):
  arrays = {f'head{i}': np.full((512, 512), i, np.float32) for i in range(8)}
  shards = dict.fromkeys(arrays, 0)
  official_writer.write(tmp_path / 'params', arrays, shards)
  out = tmp_path / 'a.safetensors'
  write = lambda: export(open_weights(tmp_path / 'params'), out, overwrite=True)
  assert peak_of(write) < 2.5 * arrays['head0'].nbytes


@pytest.mark.parametrize(
  'fields, what',
  [
    (dict(experts=4, moe_every=2), 'Encoder/encoderblock_1/Moe/'),
    (dict(head='map'), 'map_'),
    (dict(head='seqpool'), 'seqpool/kernel'),
    (dict(stem='conv'), 'stem/conv_'),
    (dict(layer_scale=0.1), 'Encoder/encoderblock_0/LayerScale_'),
    (dict(positions='sincos'), 'a position embedding that is not learnt'),
    (dict(mean=(0.4,)), 'mean=(0.4,) with std=(0.5,)'),
  ],
  ids=str,
)
def test_what_released_files_do_not_have(tmp_path, capsys, fields, what):
  run_of(tmp_path / 'run', **fields)
  out = tmp_path / 'vit.npz'
  assert main(['export', str(tmp_path / 'run'), str(out)]) == 1
  said = capsys.readouterr().err
  assert f'error: {out} cannot be written: {what}' in said
  assert 'export to vit.safetensors' in said
  assert not out.exists()


class Failing:
  where, renamed, config, class_names = 'here', {}, None, ()
  step = None

  def __init__(self, weights):
    self.shapes, self._weights, self._left = weights.shapes, weights, 3

  def read(self, name, index=None):
    self._left -= 1
    if not self._left:
      raise UserError('damaged')
    return self._weights.read(name, index)

  def stamp(self):
    return None

  def close(self):
    pass


@pytest.mark.parametrize('suffix', ['safetensors', 'npz'])
def test_nothing_half_written(tmp_path, suffix):
  out = tmp_path / f'vit.{suffix}'
  with pytest.raises(UserError, match='damaged'):
    export(Failing(open_weights(RELEASED)), out)
  assert list(tmp_path.iterdir()) == []
  out.write_text('precious')
  with pytest.raises(UserError, match='exists.*--overwrite'):
    export(open_weights(RELEASED), out)
  with pytest.raises(UserError, match='damaged'):
    export(Failing(open_weights(RELEASED)), out, overwrite=True)
  assert out.read_text() == 'precious'
  assert main(['export', str(RELEASED), str(out), '--overwrite']) == 0
  same(out, arrays_of(RELEASED))
  assert {*tmp_path.iterdir()} == {out, out.with_suffix('.md')}


@pytest.mark.slow
def test_where_it_cannot_go(tmp_path, capsys):
  for out, match in [
    (str(tmp_path / 'vit.pt'), 'must end in .safetensors or .npz'),
    ('gs://bucket/vit.npz', 'is not on this machine'),
  ]:
    assert main(['export', str(RELEASED), out]) == 1
    assert match in capsys.readouterr().err
  command = [
    sys.executable,
    '-m',
    'vmoe_robust.checkpoint',
    'export',
    'no',
    'a',
  ]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and "error: source='no'" in done.stderr


def header(**keys):
  text = json.dumps(keys).encode()
  return len(text).to_bytes(8, 'little') + text


ONE = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
BAD = {
  'empty': (b'', 'header'),
  'huge header': (b'\xff' * 8, 'header'),
  'deep header': (b'\x00\x80' + bytes(6) + b'[' * (1 << 15), 'header'),
  'shape beyond the data': (
    header(a=ONE | dict(shape=[1 << 40])) + bytes(4),
    'cannot be read as safetensors',
  ),
  'product overflows': (
    header(a=ONE | dict(shape=[1 << 62, 1 << 62])) + bytes(4),
    'cannot be read as safetensors',
  ),
  'overlap': (header(a=ONE, b=ONE) + bytes(4), 'offset'),
  'too short': (header(a=ONE), 'cannot be read as safetensors'),
  'too long': (header(a=ONE) + bytes(5), 'cannot be read as safetensors'),
  'unknown type': (
    header(a=dict(dtype='F8_E4M3', shape=[4], data_offsets=[0, 4])) + bytes(4),
    'a is of type F8_E4M3',
  ),
  **{
    f'configuration {text[:9]}': (
      header(__metadata__={'vmoe_robust.config': text}, a=ONE) + bytes(4),
      match,
    )
    for text, match in [
      ('{', 'no configuration'),
      ('[1]', 'no configuration'),
      ('{"seed": {"a": 1}}', 'no configuration'),
      ('[' * 9999, 'no configuration'),
      ('{"sead": 1}', "'config.sead' that is not known"),
    ]
  },
}


@pytest.mark.parametrize('content, match', BAD.values(), ids=list(BAD))
def test_damaged_safetensors(tmp_path, peak_of, content, match):
  path = tmp_path / 'a.safetensors'
  path.write_bytes(content)

  def refused():
    with pytest.raises(UserError, match=match):
      open_weights(path)

  assert peak_of(refused) < 1 << 20


def test_no_flipped_bit_of_an_export_stays_unseen(tmp_path, flipped):
  arrays = {
    'a': np.arange(6.0),
    'b': np.ones((2, 3), np.float32),
    'c': np.array(2, np.float32),
  }
  theirs, ours = tmp_path / 'theirs.safetensors', tmp_path / 'a.safetensors'
  names = {'vmoe_robust.class_names': json.dumps(['cat', 'dog'])}
  safetensors.numpy.save_file(arrays, theirs, names)
  export(open_weights(theirs), ours)
  assert open_weights(ours).class_names == ('cat', 'dog')
  assert flipped(ours, [ours], arrays, 300) <= {'refused', 'equal'}
  content = ours.read_bytes()
  changed = bytearray(content)
  changed[-5] ^= 1  # before the four bytes of c
  ours.write_bytes(changed)
  weights = open_weights(ours)
  with pytest.raises(UserError, match='damaged: b is not as it was written'):
    weights.read('b', (slice(0, 1),))  # of which nothing changed


def test_any_bit_may_flip(tmp_path, flipped):
  """Other programs write no checksums: values, or a name, may differ."""
  arrays = {'a': np.arange(6.0), 'b': np.ones((2, 3), np.float32)}
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(arrays, path)
  seen = flipped(path, [path], arrays, 300)
  assert seen - {'other name', 'equal'} == {'refused', 'other value'}


def test_no_safetensors(tmp_path):
  with pytest.raises(UserError, match='clf=.*[Nn]o such file'):
    open_weights(tmp_path / 'a.safetensors', field='clf')
  with pytest.raises(UserError, match='copied to this machine'):
    open_weights('memory://a.safetensors')
