"""What attacks raise: functions of logits, true class and target.

Each is larger the nearer an image is to being misclassified. `label` and
`target` are classes, one an image.

Infinite logits count as finite ones beyond all others, and have no gradient:
a class that a model masks by minus infinity is far below the rest, and all
losses stay finite. Losses are computed in float32 at least.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = Float[Array, 'batch classes']
Classes = Int[Array, 'batch']
Values = Float[Array, 'batch']

_TINY = 1e-12
# Below this number, log(1 + exp(z)) is exp(z) (1 - exp(z) / 2) in float64.
_SMALL = -18.0


def cross_entropy(logits: Logits, label: Classes, target: Classes) -> Values:
  """Softmax cross-entropy of the true class.

  It is log(1 + exp(-lead)), where the lead is the true class's logit minus
  the logarithm of the sum of exponentials of the others. That has the full
  precision for leads up to 87 in float32; for larger ones cross-entropy and its
  gradient are smaller than any float32 and become 0. Attacks raise
  `log_cross_entropy`, which stays.
  """
  del target
  return jax.nn.softplus(-_lead(_finite(logits), label))


def log_cross_entropy(
  logits: Logits, label: Classes, target: Classes
) -> Values:
  """The logarithm of cross-entropy, which orders points in the same way.

  Its gradient has the direction of cross-entropy's, and a size near 1 however
  sure the model is.
  """
  del target
  z = -_lead(_finite(logits), label)
  small = z < _SMALL
  usual = jnp.log(jax.nn.softplus(jnp.where(small, 0, z)))
  return jnp.where(small, z - jnp.exp(jnp.minimum(z, 0)) / 2, usual)


def dlr(logits: Logits, label: Classes, target: Classes) -> Values:
  """Difference of logits ratio (arXiv:2003.01690, equation 6).

  The margin where fewer than three classes have finite logits.
  """
  ranked = jnp.sort(_finite(logits), axis=1)
  scale = ranked[:, -1] - ranked[:, -3]
  return margin(logits, label, target) / _usable(scale, logits)


def targeted_dlr(logits: Logits, label: Classes, target: Classes) -> Values:
  """The same for a target (arXiv:2003.01690, equation 7).

  The targeted margin where fewer than four classes have finite logits.
  """
  ranked = jnp.sort(_finite(logits), axis=1)
  scale = ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2
  return targeted_margin(logits, label, target) / _usable(scale, logits)


def margin(logits: Logits, label: Classes, target: Classes) -> Values:
  """The highest logit of another class minus that of the true one."""
  del target
  logits = _finite(logits)
  return _others(logits, label).max(1) - _of(logits, label)


def targeted_margin(logits: Logits, label: Classes, target: Classes) -> Values:
  """The target's logit minus the true class's."""
  logits = _finite(logits)
  return _of(logits, target) - _of(logits, label)


def rivals(
  logits: Logits, label: Classes, target: Classes
) -> Float[Array, 'batch classes']:
  """Each class's logit minus the true class's; that one is out of reach."""
  del target
  logits = _finite(logits)
  others = jnp.where(_hot(logits, label), 1e10, logits)
  own = _of(logits, label)[:, None]
  return others - jnp.where(_hot(logits, label), 0, own)


def target_rival(
  logits: Logits, label: Classes, target: Classes
) -> Float[Array, 'batch 1']:
  """The one rival that the target is."""
  return targeted_margin(logits, label, target)[:, None]


LOSSES: dict[str, Callable] = {
  function.__name__: function
  for function in (
    *(cross_entropy, log_cross_entropy, dlr, targeted_dlr),
    *(margin, targeted_margin, rivals, target_rival),
  )
}


def _hot(logits, classes):
  # Indexing would communicate on a mesh.
  return classes[:, None] == jnp.arange(logits.shape[1])


def _of(logits, classes):
  return jnp.where(_hot(logits, classes), logits, 0).sum(1)


def _others(logits, classes):
  return jnp.where(_hot(logits, classes), -jnp.inf, logits)


def _far(logits):
  """What stands for an infinite logit: sums of several are still finite."""
  return float(jnp.finfo(_float(logits)).max) / 8


def _float(logits):
  return jnp.promote_types(logits.dtype, jnp.float32)


def _finite(logits):
  logits, far = logits.astype(_float(logits)), _far(logits)
  return jnp.where(jnp.isinf(logits), jnp.sign(logits) * far, logits)


def _usable(scale, logits):
  """The scale of DLR, or 1 where it hangs on a class without a finite logit."""
  return jnp.where(scale < _far(logits) / 4, scale + _TINY, 1)


def _lead(logits, label):
  """How far the true class is ahead of all others together."""
  others = _others(logits, label)
  return _of(logits, label) - jax.nn.logsumexp(others, axis=1)
