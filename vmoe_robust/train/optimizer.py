"""Optimizers and schedules, all of them Optax's."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def schedule(opt: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate by step: warm-up from 0, then `config.train.optimizer`'s."""
  peak, warmup = opt.learning_rate, opt.warmup_steps
  rest = max(steps - warmup, 1)
  if opt.schedule == 'cosine':
    after = optax.cosine_decay_schedule(peak, rest)
  elif opt.schedule == 'linear':
    after = optax.linear_schedule(peak, 0.0, rest)
  elif opt.schedule == 'rsqrt':
    time = opt.rsqrt_timescale
    after = lambda step: peak * jnp.sqrt(time / (time + step))
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  before = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([before, after], [warmup])


def make(opt: ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optimizer: clipping by the global norm, then the update."""
  rate = schedule(opt, steps)
  moments = jnp.dtype(opt.moment_dtype)
  parts = [optax.clip_by_global_norm(opt.clip_norm)] if opt.clip_norm else []
  if opt.name == 'adamw':
    parts += [
      optax.scale_by_adam(b1=opt.b1, b2=opt.b2, mu_dtype=moments),
      *_decay_and_rate(opt, rate),
    ]
  elif opt.name == 'sgd':
    if opt.momentum:
      parts.append(optax.trace(opt.momentum, accumulator_dtype=moments))
    parts += _decay_and_rate(opt, rate)
  else:  # adafactor, with the second moment factored (arXiv:1804.04235)
    parts.append(optax.scale_by_factored_rms())
    parts.append(optax.clip_by_block_rms(1.0))
    if opt.momentum:
      parts.append(
        optax.ema(opt.momentum, debias=False, accumulator_dtype=moments)
      )
    parts += _decay_and_rate(opt, rate)
  return optax.chain(*parts)


def _decay_and_rate(opt, rate):
  # Decoupled: scaled by the learning rate, but not by the moments.
  decay = optax.add_decayed_weights(opt.weight_decay, mask=_is_kernel)
  parts = [decay] if opt.weight_decay else []
  return [*parts, optax.scale_by_learning_rate(rate)]


def _is_kernel(params):
  """True for kernels; biases, LayerNorms, positions and tokens do not decay."""

  def decide(path, _):
    return any(getattr(part, 'key', None) == 'kernel' for part in path)

  return jax.tree_util.tree_map_with_path(decide, params)
