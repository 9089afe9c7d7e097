"""What is attacked: weights and a function from images to logits."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.attacks import Images, check, distance
from vmoe_robust.models import Model

Logits = Float[Array, 'batch classes']
# (params, images, mask, key) to logits. The mask is False for padding; the key
# is what a random model draws from.
Forward = Callable[
  [PyTree, Images, Bool[Array, 'batch'], Key[Array, '']], Logits
]


# (params, batch, x_adv, eps) to columns of each example, and sums.
Score = Callable[[PyTree, dict, Array, Array], tuple[dict, dict]]

# Draws over which a random model is judged.
JUDGE_DRAWS = 20


@dataclasses.dataclass(frozen=True)
class Victim:
  """A classifier, judged by one function and attacked through another.

  Both are the same but for the type they compute in, say.
  """

  forward: Forward  # judges
  attacked: Forward
  params: PyTree
  mesh: Mesh  # over which the batch is split
  random: bool = False  # whether it draws from its key


def of_function(
  fn: Callable, attacked: Callable | None = None, mesh: Mesh | None = None
) -> Victim:
  """A plain function from images in [0, 1] to logits, on all local devices.

  It is random if it takes an argument `key` besides.
  """
  judge, random = _forward(fn)
  through, attacked_random = _forward(attacked) if attacked else (judge, random)
  if mesh is None:
    devices = jax.local_devices()
    mesh = mesh_lib.create((len(devices), 1, 1), devices)
  return Victim(judge, through, (), mesh, random or attacked_random)


def of_model(
  model: Model, params: PyTree, experts: str, attacked: Model | None = None
) -> Victim:
  """One of our models; `experts` is 'dropless' or 'capacity'."""

  def forward(model, params, images, mask, key):
    del key
    return model.apply(params, images, experts=experts, mask=mask)[0]

  return Victim(
    forward=partial(forward, model),
    attacked=partial(forward, attacked or model),
    params=params,
    mesh=model.module.mesh,
  )


def predict(
  victim: Victim,
  forward: Forward,
  images: Images,
  mask: Bool[Array, 'batch'],
  key: Key[Array, ''],
  draws: int,
) -> Logits:
  """Logits; of a random model the logarithm of its mean probabilities.

  A random model is judged by what it does on average, never by one draw.
  """
  if not victim.random or draws == 1:
    return _as_float(forward(victim.params, images, mask, key))

  def one(total, key):
    logits = _as_float(forward(victim.params, images, mask, key))
    return total + jax.nn.softmax(logits), None

  keys = jax.random.split(key, draws)
  shape = jax.eval_shape(forward, victim.params, images, mask, key).shape
  total, _ = jax.lax.scan(one, jnp.zeros(shape, images.dtype), keys)
  return jnp.log(total / draws)


def is_broken(
  logits: Logits, label: Int[Array, 'batch']
) -> Bool[Array, 'batch']:
  """Misclassified; logits that are no numbers predict nothing."""
  return (logits.argmax(-1) != label) | jnp.isnan(logits).any(-1)


def simple_score(victim: Victim, norm: str, seed: int) -> Score:
  """Predictions, losses and bounds, of any model."""

  def score(params, batch, x_adv, eps):
    subject = dataclasses.replace(victim, params=params)
    images = as_floats(batch['image'])
    in_ball, in_range = check(x_adv, images, eps, norm)
    out = {'in_ball': in_ball, 'in_range': in_range}
    for name in ('linf', 'l2', 'l1'):
      out[name] = distance(x_adv, images, name)
    label = batch['label'].astype(jnp.int32)
    for when, x in (('before', images), ('after', x_adv)):
      logits = predict(
        subject,
        subject.forward,
        x,
        batch['mask'],
        jax.random.key(seed),
        JUDGE_DRAWS,
      )
      own = jax.nn.one_hot(label, logits.shape[-1])
      out[f'prediction_{when}'] = logits.argmax(-1).astype(jnp.int32)
      out[f'loss_{when}'] = -(jax.nn.log_softmax(logits) * own).sum(-1)
      out[f'nan_{when}'] = jnp.isnan(logits).any(-1)
    return out, {}

  return score


def as_floats(images: Array) -> Images:
  """Pixels in [0, 1], whatever they travelled as.

  Looked up, so that they are to the last bit those of NumPy in every program:
  a division becomes a product, which a later difference takes in unrounded.
  In l1 that adds up to more than the tolerance of a ball.
  """
  if images.dtype != jnp.uint8:
    return images
  levels = np.arange(256, dtype=np.float32) / np.float32(255)
  return jnp.asarray(levels)[images.astype(jnp.int32)]


def _forward(fn) -> tuple[Forward, bool]:
  takes_key = 'key' in inspect.signature(fn).parameters

  def forward(params, images, mask, key):
    del params, mask
    return fn(images, key=key) if takes_key else fn(images)

  return forward, takes_key


def _as_float(logits):
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
