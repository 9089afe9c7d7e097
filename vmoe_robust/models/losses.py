"""Classification losses and the routers' auxiliary losses."""

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Bool, Float, Int


def targets(
  labels: Int[Array, 'batch'] | Float[Array, 'batch classes'],
  classes: int,
  smoothing: float = 0.0,
) -> Float[Array, 'batch classes']:
  """Labels as the distribution (or the multi-hot vector) to be learnt."""
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
  return labels * (1 - smoothing) + smoothing / classes


def classification(
  logits: Float[Array, 'batch classes'],
  wanted: Float[Array, 'batch classes'],
  kind: str,
) -> Float[Array, 'batch']:
  """Cross-entropy of an image: softmax, or sigmoid summed over classes."""
  logits = logits.astype(jnp.float32)
  if kind == 'softmax':
    return optax.softmax_cross_entropy(logits, wanted)
  return optax.sigmoid_binary_cross_entropy(logits, wanted).sum(-1)


def top_is_right(
  logits: Float[Array, 'batch classes'],
  wanted: Float[Array, 'batch classes'],
) -> Bool[Array, 'batch']:
  """Whether the highest logit's class is among the most wanted ones.

  Those are the label, any label of several, or mixup's larger share. Of a
  multi-label model the mean is 1 - the false discovery rate of the top class.
  """
  top = jnp.take_along_axis(wanted, logits.argmax(-1)[:, None], 1)[:, 0]
  most = wanted.max(-1)
  # Sums of mixup's shares differ by their rounding. Smoothing leaves an image
  # without a label less than one over the classes everywhere.
  return (top > most - 1e-6) & (most >= 1 / wanted.shape[-1])


def importance(
  gates: Float[Array, 'groups tokens experts'],
  mask: Bool[Array, 'groups tokens'],
) -> Float[Array, 'groups']:
  """Squared coefficient of variation of the experts' summed gates.

  arXiv:2106.05974, appendix A, equation 6.
  """
  return _variation(jnp.where(mask[..., None], gates, 0).sum(1))


def load(
  logits: Float[Array, 'groups tokens experts'],
  threshold: Float[Array, 'groups tokens'],
  mask: Bool[Array, 'groups tokens'],
  noise_std: float,
) -> Float[Array, 'groups']:
  """Squared variation of the chance to be selected, were noise redrawn.

  arXiv:2106.05974, appendix A, equation 9. `threshold` is the lowest of the
  noisy logits that were selected, `noise_std` the noise of the logits. 1 - cdf
  is written as the survival function, which does not cancel.
  """
  above = (logits - threshold[..., None]) / noise_std
  chance = jnp.exp(log_ndtr(above))
  chance = jnp.where(mask[..., None], chance, 0).sum(1)
  return _variation(chance)


def gshard(
  gates: Float[Array, 'groups tokens experts'],
  mask: Bool[Array, 'groups tokens'],
) -> Float[Array, 'groups']:
  """Mean gate times the share of first choices (arXiv:2006.16668)."""
  experts = gates.shape[-1]
  first = jax.nn.one_hot(gates.argmax(-1), experts, dtype=gates.dtype)
  mean = lambda x: (
    jnp.where(mask[..., None], x, 0).sum(1)
    / jnp.maximum(mask.sum(1)[:, None], 1)
  )
  return (mean(gates) * mean(first)).mean(-1) * experts**2


def router_z(
  logits: Float[Array, 'groups tokens experts'],
  mask: Bool[Array, 'groups tokens'],
) -> Float[Array, 'groups']:
  """Mean squared log-partition of the router (arXiv:2202.08906, eq. 5)."""
  square = jax.nn.logsumexp(logits, -1) ** 2
  return jnp.where(mask, square, 0).sum(1) / jnp.maximum(mask.sum(1), 1)


def _variation(x: Float[Array, 'groups experts']) -> Float[Array, 'groups']:
  # Variance over squared mean: the gradient of a standard deviation is NaN
  # where the variance is zero. A group of padding alone sums to zero.
  mean = x.mean(-1)
  whole = mean > 0
  variance = jnp.square(x - mean[:, None]).mean(-1)
  return jnp.where(whole, variance / jnp.where(whole, mean, 1) ** 2, 0)
