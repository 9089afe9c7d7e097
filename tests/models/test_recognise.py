import jax
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import shapes_of
from vmoe_robust.config import UserError, moe_blocks
from vmoe_robust.models import build, recognise, unbox

SIZE = dict(patch=4, hidden=24, layers=4, heads=3, mlp=40, num_classes=7)
MODELS = [
  dict(channels=1),
  dict(channels=3, experts=4, moe_every=2),
  dict(channels=3, experts=8, moe_last=1, head='gap', pre_logits=24),
  dict(channels=1, experts=1, moe_blocks=(0, 3), head='map'),
  dict(channels=3, head='seqpool', layer_scale=0.1),
]


def shapes(model, size=12):
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  built = build(model, (size, size, model.channels), mesh)
  params = jax.eval_shape(built.init, jax.random.key(0))
  return shapes_of(unbox(params))


def model_of(fields, **router):
  model = config_lib.default().model
  model.update(SIZE | fields)
  model.router.update(router)
  return model


@pytest.mark.parametrize('fields', MODELS, ids=lambda f: str(list(f)[1:]))
def test_every_field_that_shapes_tell(fields):
  model = model_of(fields)
  found, size = recognise(shapes(model), 'there')
  assert size == 12
  assert moe_blocks(found) == moe_blocks(model)
  assert bool(found.layer_scale) == bool(model.layer_scale)
  told = ['channels', 'head', 'positions', 'pre_logits', 'experts', *SIZE]
  for name in told:
    assert found[name] == model[name], name
  assert found.router.selected == min(2, model.experts) or not model.experts


def test_what_is_no_such_model_is_refused():
  there = shapes(model_of(dict(channels=1, experts=2, moe_every=2)))
  cases = {
    'embedding/kernel is absent': 'embedding/',
    'head/kernel is absent': 'head/',
    'encoderblock_2/LayerNorm_0/scale is absent': 'Encoder/encoderblock_2/',
    'Moe/Router/dense/kernel is absent': 'Encoder/encoderblock_1/Moe/Router/',
    'pos_embedding is absent': 'Encoder/posembed_input/',
  }
  for words, gone in cases.items():
    rest = {n: s for n, s in there.items() if not n.startswith(gone)}
    with pytest.raises(UserError, match=f'nowhere .*{words}'):
      recognise(rest, 'nowhere')
  positions = 'Encoder/posembed_input/pos_embedding'
  with pytest.raises(UserError, match='11 patches.*square'):
    recognise(there | {positions: (1, 12, 24)}, 'nowhere')
  with pytest.raises(UserError, match=r'query/kernel is \(24, 0, 8\)'):
    query = 'Encoder/encoderblock_0/SelfAttention/query/kernel'
    recognise(there | {query: (24, 0, 8)}, 'nowhere')
  far = f'Encoder/encoderblock_{"9" * 5000}/LayerNorm_0/scale'
  recognise(there | {far: (24,)}, 'nowhere')  # which then is left over
  with pytest.raises(UserError, match=r'head/kernel is \(7,\)'):
    recognise(there | {'head/kernel': (7,)}, 'nowhere')


def test_a_stem_of_convolutions_does_not_tell_its_patch():
  there = shapes(model_of(dict(channels=3, stem='conv')))
  with pytest.raises(
    UserError, match="there has .*stem='conv'.*work directory"
  ):
    recognise(there, 'there')


@pytest.mark.parametrize('every', [1, 2])
def test_routers_and_widths_that_shapes_tell(every):
  fields = dict(channels=1, experts=4, moe_every=every, shared_experts=2)
  fields['expert_mlp'] = 0 if every == 1 else 10  # no dense MLP tells its width
  router = dict(balance_rate=0.5, load_weight=0.0, frozen=True)
  model = model_of(fields, **router)
  there = shapes(model)
  found, _ = recognise(there, 'there')
  for name in ('experts', 'mlp', 'expert_mlp', 'shared_experts'):
    assert found[name] == model[name], name
  assert found.router.frozen and found.router.balance_rate
  assert shapes(found) == there


def test_a_router_without_weights_is_not_recognised():
  there = shapes(
    model_of(dict(channels=1, experts=2, moe_every=2), name='hash')
  )
  with pytest.raises(UserError, match='Moe/Router/dense/kernel is absent'):
    recognise(there, 'nowhere')
