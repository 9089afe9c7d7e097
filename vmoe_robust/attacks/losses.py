"""What attacks raise: functions of logits, true class and target.

Each is larger the nearer an image is to being misclassified. `label` and
`target` are classes, one an image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = Float[Array, 'batch classes']
Classes = Int[Array, 'batch']
Values = Float[Array, 'batch']

_TINY = 1e-12


def cross_entropy(logits: Logits, label: Classes, target: Classes) -> Values:
  """Softmax cross-entropy of the true class."""
  del target
  return -_of(jax.nn.log_softmax(logits), label)


def dlr(logits: Logits, label: Classes, target: Classes) -> Values:
  """Difference of logits ratio (arXiv:2003.01690, equation 6)."""
  ranked = jnp.sort(logits, axis=1)
  scale = ranked[:, -1] - ranked[:, -3]
  return margin(logits, label, target) / (scale + _TINY)


def targeted_dlr(logits: Logits, label: Classes, target: Classes) -> Values:
  """The same for a target (arXiv:2003.01690, equation 7)."""
  ranked = jnp.sort(logits, axis=1)
  scale = ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2
  return targeted_margin(logits, label, target) / (scale + _TINY)


def margin(logits: Logits, label: Classes, target: Classes) -> Values:
  """The highest logit of another class minus that of the true one."""
  del target
  return _others(logits, label).max(1) - _of(logits, label)


def targeted_margin(logits: Logits, label: Classes, target: Classes) -> Values:
  """The target's logit minus the true class's."""
  return _of(logits, target) - _of(logits, label)


def rivals(
  logits: Logits, label: Classes, target: Classes
) -> Float[Array, 'batch classes']:
  """Each class's logit minus the true class's; that one is out of reach."""
  del target
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
    *(cross_entropy, dlr, targeted_dlr, margin, targeted_margin),
    *(rivals, target_rival),
  )
}


def _hot(logits, classes):
  # Indexing would communicate on a mesh.
  return classes[:, None] == jnp.arange(logits.shape[1])


def _of(logits, classes):
  return jnp.where(_hot(logits, classes), logits, 0).sum(1)


def _others(logits, classes):
  return jnp.where(_hot(logits, classes), -jnp.inf, logits)
