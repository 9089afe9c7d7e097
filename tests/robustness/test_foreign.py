"""What people hand in: modules, pairs, NumPy functions, changed weights."""

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.robustness.problems import QUICK, problem
from vmoe_robust import robust_accuracy
from vmoe_robust.config import UserError
from vmoe_robust.models.stem import product
from vmoe_robust.robustness.foreign import of_function

SHAPE = (6, 6, 1)
run = functools.partial(robust_accuracy, attack='fgsm', eps=0.02, **QUICK)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(5)(x.reshape(len(x), -1))


class Net(nnx.Module):
  """A layer, with what behaves unlike in training."""

  def __init__(self, kind=''):
    self.dense = nnx.Linear(36, 5, rngs=nnx.Rngs(0))
    self.more = {
      '': lambda x: x,
      'dropout': nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
      'norm': nnx.BatchNorm(5, rngs=nnx.Rngs(2)),
    }[kind]

  def __call__(self, x):
    return self.more(self.dense(x.reshape(len(x), -1)))


@dataclasses.dataclass(eq=True)
class Unhashable:
  """As equinox's modules are: a callable with arrays in it."""

  weights: jnp.ndarray
  __hash__ = None

  def __call__(self, x):
    return x.reshape(len(x), -1) @ self.weights


class Cnn(nn.Module):
  convolution: Callable | None = None  # None: XLA's

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(nn.Conv, conv_general_dilated=self.convolution)
    x = nn.tanh(conv(4, (3, 3), padding=1)(x))
    return nn.Dense(5)(conv(4, (3, 3), 2, padding=1)(x).reshape(len(x), -1))


def by_hand(logits):
  """The images, and as labels what a function says of them."""
  _, images, _ = problem()
  return images, np.asarray(logits(jnp.asarray(images))).argmax(-1)


def weights(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(36, 5)), jnp.float32)


def modules():
  linen = Linen()
  variables = jax.jit(linen.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  bound = linen.bind(variables)
  unhashable = Unhashable(weights())
  pair = lambda w, x: x.reshape(len(x), -1) @ w
  return {
    'bound linen module': (bound, lambda x: linen.apply(variables, x)),
    'NNX module': ((net := Net()), net),
    'unhashable': (unhashable, unhashable),
    'a pair': ((pair, weights()), functools.partial(pair, weights())),
  }


@pytest.mark.parametrize('name', modules())
def test_what_people_hand_in_is_judged(name):
  model, logits = modules()[name]
  images, labels = by_hand(logits)
  found = run(model, images, labels)
  assert found.clean_accuracy == 1
  right = np.asarray(logits(found.x_adv)).argmax(-1) == labels
  np.testing.assert_array_equal(found.robust, right)
  assert 0 < found.accuracy < 1


@pytest.mark.parametrize('how', ['module', 'closure', 'pair'])
def test_a_model_that_changed_is_judged_as_it_is_now(how):
  net = Net()
  images, labels = by_hand(net)
  held = {'w': net.dense.kernel.get_value()}
  flat = lambda x: x.reshape(len(x), -1)
  model = {
    'module': net,
    'closure': lambda x: flat(x) @ held['w'],
    'pair': (lambda w, x: flat(x) @ w['w'], held),
  }[how]
  assert run(model, images, labels).clean_accuracy == 1
  net.dense.kernel.set_value(-held['w'])
  held['w'] = -held['w']
  found = run(model, images, labels)
  assert found.clean_accuracy < 0.5 and found.accuracy <= found.clean_accuracy


def test_no_weights_are_kept_alive():
  images, labels = by_hand(lambda x: x.reshape(len(x), -1) @ weights())

  def call():
    class Weights:
      array = weights()

    held = Weights()
    run(lambda x: x.reshape(len(x), -1) @ held.array, images, labels)
    return weakref.ref(held)

  ref = call()
  gc.collect()
  assert ref() is None


@pytest.mark.parametrize('kind', ['dropout', 'norm'])
@pytest.mark.parametrize('how', ['module', 'closure'])
def test_a_module_in_training_mode_is_told_so(kind, how):
  net = Net(kind)
  net.train()
  _, images, labels = problem()
  model = net if how == 'module' else lambda x: net(x)
  with pytest.raises(UserError, match=r'call model.eval\(\) first'):
    run(model, images, labels)
  net.eval()
  assert 0 <= run(model, images, labels).accuracy <= 1


def in_numpy(x):
  x = np.asarray(x)
  return x.reshape(len(x), -1) @ np.asarray(weights())


def through_a_callback(x):
  out = jax.ShapeDtypeStruct((len(x), 5), np.float32)
  return jax.pure_callback(in_numpy, out, x)


@pytest.mark.slow
@pytest.mark.parametrize('model', [in_numpy, through_a_callback])
def test_what_has_no_gradient_is_attacked_by_square(model):
  images, labels = by_hand(lambda x: x.reshape(len(x), -1) @ weights())
  found = run(model, images, labels, attack='square', eps=0.1)
  right = in_numpy(found.x_adv).argmax(-1) == labels
  np.testing.assert_array_equal(found.robust, right)
  assert found.clean_accuracy == 1 and 0 < found.accuracy < 1
  for attack in ('fgsm', 'autoattack', ['square', 'apgd_ce']):
    with pytest.raises(UserError, match="no gradient.*use attack='square'"):
      run(model, images, labels, attack=attack)


@pytest.mark.slow
def test_a_callback_with_a_gradient_is_attacked_by_all():
  """As docs/attacks.md shows for PyTorch."""

  @jax.custom_vjp
  def model(x):
    return through_a_callback(x)

  def forward(x):
    return model(x), x

  def backward(x, cotangent):
    pull = lambda c: (np.asarray(c) @ np.asarray(weights()).T).reshape(x.shape)
    out = jax.ShapeDtypeStruct(x.shape, np.float32)
    return (jax.pure_callback(pull, out, cotangent),)

  model.defvjp(forward, backward)
  images, labels = by_hand(lambda x: x.reshape(len(x), -1) @ weights())
  exact = run(
    (lambda w, x: x.reshape(len(x), -1) @ w, weights()), images, labels
  )
  found = run(model, images, labels)
  np.testing.assert_array_equal(found.robust, exact.robust)


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (lambda x: (x.reshape(len(x), -1) @ weights()).T, 'logits .batch, classes'),
    (lambda x: x.mean((1, 2, 3)), r'shape \[2\] for 2 images'),
    (lambda x: {'logits': x}, 'returns dict'),
    (Linen(), 'a Flax module without weights'),
    ('model', 'is str, which cannot be called'),
  ],
)
def test_what_returns_no_logits_is_refused(model, words):
  with pytest.raises(UserError, match=words):
    of_function(model, None, SHAPE)


def test_an_error_of_the_model_is_its_own():
  def broken(x):
    raise KeyError('a layer')

  with pytest.raises(KeyError, match='a layer'):
    of_function(broken, None, SHAPE)


class Scorer:
  """As other libraries' classifiers are: no array, and called on the host."""

  def decision_function(self, x):
    return np.asarray(x).reshape(len(x), -1) @ np.asarray(weights())


@pytest.mark.parametrize(
  ('function', 'given', 'attack'),
  [
    (lambda w, x: x.reshape(len(x), -1) @ w, None, 'fgsm'),  # on one device
    (lambda w, x: x.reshape(len(x), w['n']) @ w['w'], {'n': 36}, 'fgsm'),
    (
      lambda w, x: w['act'](x.reshape(len(x), -1) @ w['w']),
      {'act': jnp.tanh, 'name': 'linear'},
      'fgsm',
    ),
    (lambda w, x: x.reshape(len(x), -1) @ weights(), 'nothing', 'fgsm'),
    (lambda w, x: w.decision_function(x), Scorer(), 'square'),
  ],
  ids=['placed', 'a size', 'a function', 'no weights', 'on the host'],
)
def test_weights_may_be_anything(function, given, attack):
  if given is None:
    given = jax.device_put(weights(), jax.devices()[0])
  elif given == 'nothing':
    given = None
  elif isinstance(given, dict):
    given = given | {'w': weights()}
  plain = lambda x: x.reshape(len(x), -1) @ weights()
  _, images, labels = problem()
  labels[::2] = np.asarray(plain(images)).argmax(-1)[::2]
  found = run((function, given), images, labels, attack=attack)
  expected = run(plain, images, labels, attack=attack)
  assert 0 < found.clean_accuracy == expected.clean_accuracy < 1
  if 'act' not in str(given):  # by which the logits are others
    np.testing.assert_array_equal(found.robust, expected.robust)


def test_a_module_is_given_arrays_of_jax():
  class Updates(Net):
    def __call__(self, x):
      return super().__call__(x.at[:, 0].set(0))  # as those of NumPy cannot

  assert of_function(Updates(), None, SHAPE).differentiable


def test_a_key_comes_after_the_images():
  with pytest.raises(UserError, match='takes key first; it must take images,'):
    of_function(lambda key, x: x, None, SHAPE)
  with pytest.raises(UserError, match='it must take weights and images, and'):
    of_function((lambda w, key, x: x, weights()), None, SHAPE)


def test_what_cannot_be_called_so_is_told():
  fn = lambda weights, x: x.reshape(len(x), -1)
  with pytest.raises(UserError, match="the model cannot .* images .*'x'"):
    of_function(fn, None, SHAPE)
  with pytest.raises(UserError, match='attack_through cannot .* images'):
    of_function((fn, weights()), fn, SHAPE)
  with pytest.raises(UserError, match="weights and images .*'train'"):
    of_function((lambda w, x, *, train: x, weights()), None, SHAPE)
  of_function((fn, weights()), (fn, weights()), SHAPE)


@pytest.mark.slow
def test_convolutions_are_found_and_attacked_alike():
  # Those of XLA are slow in loops on a CPU, so that the host turns the loop.
  weights = Cnn().init(jax.random.key(0), np.zeros((1, *SHAPE)))
  results = []
  for convolution in (None, product):
    module = Cnn(convolution)
    fn = jax.jit(module.apply)
    target = of_function((fn, weights), None, SHAPE)
    assert target.convolves == (convolution is None)
    images, labels = by_hand(functools.partial(module.apply, weights))
    results.append(
      robust_accuracy(
        (fn, weights), images, labels, attack='autoattack', eps=0.1, **QUICK
      )
    )
  host, program = results
  assert 0 < host.accuracy < 1
  np.testing.assert_array_equal(host.robust, program.robust)
  np.testing.assert_allclose(
    host.x_adv[host.robust], program.x_adv[host.robust], atol=1e-5
  )


def test_a_key_that_is_given_already_is_kept():
  fn, images, _ = problem()

  def noisy(x, key, scale=3.0):
    return fn(x) + scale * jax.random.normal(key, (1, 5))

  key = jax.random.key(5)
  labels = np.asarray(noisy(images, key).argmax(1))
  found = run(functools.partial(noisy, key=key), images, labels, eps=1e-6)
  assert found.accuracy == found.clean_accuracy == 1 and not found.warnings
  old = functools.partial(noisy, key=jax.random.PRNGKey(5))  # two numbers
  assert run(old, images, labels, eps=1e-6).accuracy == 1
  free = run(functools.partial(noisy, scale=0.1), images, labels, eps=1e-6)
  assert 'outputs are random' in str(free.warnings)


def test_what_jax_says_of_a_model_without_a_gradient_is_told():
  fn, images, labels = problem()

  def branches(x):
    return fn(x / 255) if x.max() > 1 else fn(x)

  with pytest.raises(UserError, match='TracerBoolConversionError') as caught:
    run(branches, images, labels)
  assert caught.value.__cause__ is not None


def test_an_attribute_called_target_is_no_method():
  fn, images, labels = problem()
  call = lambda x: fn(x)
  call.target = 3
  assert run(call, images, labels).clean_accuracy > 0.6
