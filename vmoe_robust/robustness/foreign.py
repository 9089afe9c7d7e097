"""Functions and modules that people hand in, as targets."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from jax.extend.core import Jaxpr, subjaxprs
from jax.sharding import Mesh
from jaxtyping import PyTree

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError
from vmoe_robust.robustness.target import Target

# A function from images to logits, `(function, weights)`, a Flax module with
# its weights, or an object with a method `target`, such as what `load` returns.
Model = Any

_TRAINING = (
  'the model changes its own state when it is called, as in training mode; '
  'call model.eval() first'
)


def of_model(
  model: Model,
  attack_through: Model | None,
  shape: tuple[int, int, int],
) -> Target:
  """What is attacked, whatever was handed in.

  Args:
    model: see `robust_accuracy`.
    attack_through: see `robust_accuracy`.
    shape: of an image.

  Raises:
    UserError: it is no model, or none of such images.
  """
  if callable(getattr(model, 'target', None)):
    if attack_through is not None:
      raise UserError('attack_through is for functions; leave it out')
    return model.target(shape)
  return of_function(model, attack_through, shape)


def of_function(
  model: Model,
  attack_through: Model | None,
  shape: tuple[int, int, int],
  mesh: Mesh | None = None,
) -> Target:
  """A function from images in [0, 1] to logits, on all local devices.

  It is random if it takes an argument `key` besides.

  Raises:
    UserError: it is no function of images, or its output is no logits.
  """
  judge = _Function(model, shape, 'the model')
  attacked = judge
  if attack_through is not None:
    attacked = _Function(attack_through, shape, 'attack_through')
    if attacked.classes != judge.classes:
      raise UserError(
        f'attack_through has {attacked.classes} classes and the model '
        f'{judge.classes}; both must have the same'
      )
  differentiable = attacked.has_gradient()
  if mesh is None:
    devices = jax.local_devices()
    if judge.on_host or attacked.on_host:
      devices = devices[:1]  # it is called once for a batch
    mesh = mesh_lib.create((len(devices), 1, 1), devices)
  copies: dict[int, jax.Array] = {}  # of arrays that both functions may have
  return Target(
    judge=lambda params, *rest: judge(params[0], *rest),
    attacked=lambda params, *rest: attacked(params[1], *rest),
    params=tuple(_placed(f.weights, mesh, copies) for f in (judge, attacked)),
    mesh=mesh,
    classes=judge.classes,
    random=judge.takes_key or attacked.takes_key,
    differentiable=differentiable,
    why=attacked.why,
    convolves=judge.convolves or attacked.convolves,
  )


class _Function:
  """A function that was handed in, called with its weights."""

  def __init__(self, model: Model, shape: tuple[int, int, int], name: str):
    """Finds out how it is called, and what it returns."""
    self._name, self._shape = name, shape
    self.on_host = self.convolves = False
    self.why: Exception | None = None  # JAX cannot trace or differentiate it
    self._fn, self.weights, self.takes_key = self._split(model)
    self.classes = self._find_classes()

  def __call__(self, weights: PyTree, images, mask, key) -> tuple:
    """See `target.Forward`."""
    del mask
    if self.on_host:
      out = jax.ShapeDtypeStruct((len(images), self.classes), np.float32)
      return jax.pure_callback(self._ask_host, out, images), ()
    return self._ask(weights, images, key), ()

  def has_gradient(self) -> bool:
    """Whether JAX can differentiate it by the images; `why` not."""

    def total(x):
      return self(self.weights, x, None, jax.random.key(0))[0].sum()

    try:
      jax.eval_shape(jax.grad(total), self._images(2))
    except Exception as error:  # whatever it raises: there is none
      self.why = self.why or error
      return False
    return True

  def _split(self, model) -> tuple[Callable, PyTree, bool]:
    """The function, its weights, and whether it asks for a key.

    Weights that are known are an argument of it. What is an argument is not
    compiled into the program, where it would be slow to compile and kept in
    memory. What is no array, such as a name, cannot be one.
    """
    if isinstance(model, nnx.Module):
      return *self._of_nnx(model), False
    if isinstance(model, nn.Module):
      if model.scope is None:
        raise UserError(
          f'{self._name} is a Flax module without weights; give '
          '(lambda weights, x: module.apply(weights, x), weights)'
        )
      module, weights = model.unbind()
      model = module.apply, weights
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
      fn, weights = model
      leaves, tree = jax.tree.flatten(weights)
      arrays = [leaf for leaf in leaves if _is_array(leaf)]

      def ask(arrays, images, **more):
        given = iter(arrays)
        whole = [next(given) if _is_array(leaf) else leaf for leaf in leaves]
        return fn(jax.tree.unflatten(tree, whole), images, **more)

      return ask, arrays, self._takes_key(fn, 2)
    if not callable(model):
      raise UserError(
        f'{self._name} is {type(model).__name__}, which cannot be called; give '
        'a function from images to logits, or (function, weights)'
      )
    return model, None, self._takes_key(model, 1)

  def _takes_key(self, fn: Callable, given: int) -> bool:
    """Whether it asks for a key, besides what it is given, in this order."""
    what = 'images' if given == 1 else 'weights and images'
    try:
      signature = inspect.signature(fn)
    except (TypeError, ValueError):  # of what has no signature
      return False
    names = signature.parameters
    key = names.get('key')
    needed = key is not None and key.default is key.empty
    takes = needed or (key is not None and key.default is None)
    first = takes and key.kind != key.KEYWORD_ONLY
    if first and needed and list(names).index('key') < given:
      raise UserError(
        f'{self._name} takes key first; it must take {what}, and then the key '
        'from which it draws'
      )
    try:
      signature.bind(*[None] * given, **({'key': None} if takes else {}))
    except TypeError as error:
      raise UserError(
        f'{self._name} cannot be called with {what} ({error}); give a function '
        'of images, or a pair (function, weights) whose function takes the '
        'weights and the images'
      ) from error
    return takes

  def _of_nnx(self, model):
    graph, weights = nnx.split(model)

    def ask(weights, images):
      return nnx.merge(graph, weights)(images)

    # Once for real: a copy that draws or counts would do so alike each time.
    copy = nnx.merge(graph, jax.tree.map(jnp.array, weights))
    copy(jnp.zeros((2, *self._shape), np.float32))
    before, after = jax.tree.leaves(weights), jax.tree.leaves(nnx.state(copy))
    same = lambda a, b: np.array_equal(_numbers(a), _numbers(b))
    if len(before) != len(after) or not all(map(same, before, after)):
      raise UserError(_TRAINING)
    return ask, weights

  def _find_classes(self) -> int:
    found = []
    for batch in (2, 3):  # a batch that is no class is told by two sizes
      out = self._shape_of(batch)
      if len(out) != 2 or out[0] != batch:
        raise UserError(
          f'{self._name} returns an array of shape {list(out)} for {batch} '
          'images; it must return logits [batch, classes]'
        )
      found.append(out[1])
    return found[0]

  def _shape_of(self, batch: int) -> tuple[int, ...]:
    ask = lambda weights, x, key: self._ask(weights, x, key)
    if not self.on_host:
      try:
        key = jax.eval_shape(jax.random.key, 0)
        jaxpr, out = jax.make_jaxpr(ask, return_shape=True)(
          self.weights, self._images(batch), key
        )
        self.convolves = 'conv_general_dilated' in _operations(jaxpr.jaxpr)
        return self._shape_if_array(out)
      except TraceContextError as error:
        raise UserError(_TRAINING) from error
      except UserError:
        raise
      except Exception as error:  # perhaps NumPy can call it
        self.on_host, self.takes_key, self.why = True, False, error
    zeros = np.zeros((batch, *self._shape), np.float32)
    return np.asarray(self._ask_host(zeros)).shape

  def _shape_if_array(self, out) -> tuple[int, ...]:
    if not hasattr(out, 'shape'):
      raise UserError(
        f'{self._name} returns {type(out).__name__}; it must return logits '
        '[batch, classes] alone'
      )
    self._require_real(out.dtype)
    return out.shape

  def _require_real(self, dtype):
    if jnp.issubdtype(dtype, jnp.complexfloating):
      raise UserError(
        f'{self._name} returns {dtype}; it must return logits, which are real'
      )

  def _ask(self, weights, images, key):
    more = dict(key=key) if self.takes_key else {}
    if self.weights is None:
      return self._fn(images, **more)
    return self._fn(weights, images, **more)

  def _ask_host(self, images):
    images = np.asarray(images)
    weights = [] if self.weights is None else [self.weights]
    out = np.asarray(self._fn(*weights, images))
    self._require_real(out.dtype)
    return out.astype(np.float32)

  def _images(self, batch):
    return jax.ShapeDtypeStruct((batch, *self._shape), np.float32)


def _is_array(leaf: object) -> bool:
  """Whether it may be an argument of a compiled function."""
  if isinstance(leaf, np.ndarray):
    return leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)
  return isinstance(leaf, jax.Array)


def _placed(
  weights: PyTree, mesh: Mesh, copies: dict[int, jax.Array]
) -> PyTree:
  """Weights where the mesh can use them: those on other devices are copied."""
  devices = {*mesh.devices.flat}

  def place(leaf):
    if isinstance(leaf, jax.Array) and leaf.sharding.device_set != devices:
      if id(leaf) not in copies:
        copies[id(leaf)] = jax.device_put(leaf, mesh_lib.replicated(mesh))
      return copies[id(leaf)]
    return leaf

  return jax.tree.map(place, weights)


def _operations(jaxpr: Jaxpr) -> set[str]:
  """Names of what a traced function does, and what it calls."""
  own = {equation.primitive.name for equation in jaxpr.eqns}
  return own.union(*map(_operations, subjaxprs(jaxpr)))


def _numbers(leaf) -> np.ndarray:
  """An array of numbers, of random keys too."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)
