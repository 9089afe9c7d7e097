"""Weights of one model as the start of another: what fits, and how."""

import dataclasses
import fnmatch
import zlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from scipy import ndimage

from vmoe_robust.checkpoint.trees import Shapes, name_of
from vmoe_robust.checkpoint.weights import Weights
from vmoe_robust.config import UserError

# Weights of the task and of the way of pooling, not of the encoder: they may
# differ without being named.
HEAD = ('head', 'pre_logits', 'cls', 'map_*', 'seqpool')
# Those that hold a number for each class, on their last axis.
_CLASSES = ('head/kernel', 'head/bias')
WAYS = ('loaded', 'renamed', 'reordered', 'resized', 'upcycled', 'fresh')


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where each weight of a model comes from; nothing is read yet."""

  how: dict[str, str]  # of each weight of the model, one of WAYS
  source: dict[str, str]  # of those that are not fresh, the weight it is from
  left_over: list[str]  # what is there and not used
  unexpected: list[str]  # fresh, or left over, and nobody asked for it
  # The class there of each class of the model; None: in the same order.
  order: tuple[int, ...] | None = None


def plan(
  there: Shapes,
  wanted: Shapes,
  renamed: Iterable[str] = (),
  excepted: Iterable[str] = (),
  order: Sequence[int] | None = None,
) -> Plan:
  """How the weights that are there make those of a model.

  Position embeddings of another grid are resized. Where a block of the model
  has experts and that of the weights an MLP, it starts every expert
  (arXiv:2212.05055) and the router stays fresh. All else fits as it is or not.

  Args:
    there: of the weights, by their names here.
    wanted: of the model.
    renamed: names that are others in the file.
    excepted: patterns of what is not to be taken; see `matches`.
    order: which of the classes there each class of the model is, if they are
      the same classes in another order.
  """
  how, source, unexpected = {}, {}, []
  renamed, free = set(renamed), (*HEAD, *excepted)
  for name, shape in wanted.items():
    way, dense = 'fresh', _dense(name)
    if not matches(name, excepted):
      way = _way(there.get(name), there.get(dense), name, shape)
    if way == 'loaded' and name in renamed:
      way = 'renamed'
    if way in ('loaded', 'renamed') and order and name in _CLASSES:
      way = 'reordered'
    how[name] = way
    if way != 'fresh':
      source[name] = dense if way == 'upcycled' else name
    elif not matches(name, free) and not _new_router(name, there):
      unexpected.append(name)
  used = set(source.values())
  left_over = [name for name in there if name not in used]
  unexpected += [
    name for name in left_over if name not in wanted and not matches(name, free)
  ]
  order = None if order is None else tuple(order)
  return Plan(how, source, left_over, unexpected, order)


def matches(name: str, patterns: Iterable[str]) -> bool:
  """Whether a weight, or a group that it is in, is one of the patterns.

  `*` stands for anything: 'Encoder/encoderblock_*/Moe' is all experts and
  routers.
  """
  return any(
    fnmatch.fnmatchcase(name, end) for p in patterns for end in (p, p + '/*')
  )


def take(
  weights: Weights,
  plan: Plan,
  params: PyTree,
  noise: float = 0.0,
  seed: int = 0,
) -> PyTree:
  """Reads what a plan takes; each device's part by itself.

  Args:
    weights: whose shapes were planned with.
    plan: of `plan`.
    params: the model's weights, or `jax.ShapeDtypeStruct`s with shardings
      where nothing stays fresh. What is read gets their types and places.
    noise: of upcycled weights, normal, relative to each array's deviation. It
      follows the seed, the weight and the expert, so no mesh changes it.
    seed: of the noise.

  Raises:
    UserError: a weight is no floating-point number, as in a quantised file, or
      too large for the model's.
  """

  def one(keys, leaf):
    name = name_of(keys)
    if plan.how[name] == 'fresh':
      return leaf
    source, read = plan.source[name], weights.read
    kind = weights.shapes[source].dtype
    if not jnp.issubdtype(kind, jnp.floating):
      raise UserError(
        f'{weights.where} has {source} as {kind}, and weights are floating-'
        'point numbers; scale quantised ones back first'
      )
    if plan.how[name] == 'resized':
      # SciPy has no bfloat16.
      whole = np.asarray(read(source), np.float32)
      whole = resize_positions(whole, leaf.shape[1])
      part = lambda index: whole[index]
    elif plan.how[name] == 'reordered':
      whole = read(source)[..., list(plan.order)]
      part = lambda index: whole[index]
    elif plan.how[name] == 'upcycled':
      part = _experts(read(source), leaf.shape[0], name, noise, seed)
    else:
      part = lambda index: read(source, index)
    return _place(part, leaf, f'{weights.where}: {source}')

  return jax.tree_util.tree_map_with_path(one, params)


def resize_positions(
  embedding: Float[np.ndarray, '1 tokens dim'], tokens: int
) -> Float[np.ndarray, '1 {tokens} dim']:
  """Position embeddings of another resolution, linear on the square grid.

  A first row that the grid does not account for is the class token's, and is
  kept.
  """
  old, new = _front(embedding.shape[1]), _front(tokens)
  # A new token of the class starts from zero; a superfluous one is left out.
  front = np.zeros((1, new, embedding.shape[2]), embedding.dtype)
  front[:, : min(old, new)] = embedding[:, : min(old, new)]
  grid = embedding[0, old:]
  side, wanted = _side(len(grid)), _side(tokens - new)
  grid = grid.reshape(side, side, -1)
  zoom = (wanted / side, wanted / side, 1)
  grid = ndimage.zoom(grid, zoom, order=1).reshape(1, wanted**2, -1)
  return np.concatenate([front, grid], axis=1)


def _way(same, dense, name: str, shape: tuple[int, ...]) -> str:
  """How weights of the same name, or a dense MLP's, make one of a shape."""
  if same == shape:
    return 'loaded'
  if same is None:
    return 'upcycled' if dense is not None and dense == shape[1:] else 'fresh'
  if not name.endswith('pos_embedding') or same[2:] != shape[2:]:
    return 'fresh'
  square = _front(same[1]) is not None and _front(shape[1]) is not None
  return 'resized' if square else 'fresh'


def _dense(name: str) -> str:
  """The dense MLP's weight in the place of an expert's."""
  return name.replace('/Moe/Mlp/', '/Mlp/') if '/Moe/Mlp/' in name else ''


def _new_router(name: str, there: Shapes) -> bool:
  """Whether it routes to experts that a dense MLP starts."""
  block, is_router, _ = name.partition('/Moe/Router/')
  return bool(is_router) and f'{block}/Mlp/Dense_0/kernel' in there


def _experts(
  dense: np.ndarray, experts: int, name: str, noise: float, seed: int
) -> Callable[[tuple[slice, ...]], np.ndarray]:
  """Parts of the experts' weights that all start from one array."""
  dense = np.asarray(dense, np.float32)

  def one(expert):
    if not noise:
      return dense
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), expert])
    draw = rng.standard_normal(dense.shape, np.float32)
    return dense + np.float32(noise) * dense.std() * draw

  def part(index):
    which = range(experts)[index[0]]
    return np.stack([one(expert)[index[1:]] for expert in which])

  return part


def _place(part: Callable, leaf, what: str) -> jax.Array:
  read = {}  # devices that hold the same part read it once

  def on_device(index):
    key = tuple((s.start, s.stop) for s in index)
    if key not in read:
      read[key] = _narrowed(np.asarray(part(index)), leaf.dtype, what)
    return read[key]

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, on_device)


def _narrowed(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
  """Of another type.

  Raises:
    UserError: a number has no place in it.
  """
  with np.errstate(over='ignore'):
    found = array.astype(dtype)
  if found.itemsize < array.itemsize:
    lost = np.isfinite(array) & ~np.isfinite(found)
    if lost.any():
      raise UserError(
        f'{what} has {array[lost].flat[0]:.3g}, which is beyond {found.dtype}; '
        'weights so large are damaged'
      )
  return found


def _side(count: int) -> int:
  return round(count**0.5)


def _front(tokens: int) -> int | None:
  """Tokens before the square grid: 0 or 1; None if neither is square."""
  for front in (0, 1):
    if _side(tokens - front) ** 2 == tokens - front:
      return front
  return None
