"""What to change where a program does not fit into memory."""

from ml_collections import ConfigDict

from vmoe_robust.config import UserError, batch_size, mesh_shape, validate

# What can be computed again beyond what is, by `config.train.remat`.
_BLOCKS = '--config.train.remat=blocks: a third more FLOPs'
_DOTS = '--config.train.remat=dots: all but matrix products is computed again'
_REMAT = {'': [_DOTS, _BLOCKS], 'dots': [_BLOCKS], 'blocks': []}


def advise(
  config: ConfigDict,
  devices: int,
  use: str,
  state: int,
  rest: int,
  limit: int,
  slices: int = 1,
) -> list[str]:
  """Changes that would help, those that cost least first.

  Args:
    config: what does not fit; it is valid.
    devices: of the topology.
    use: 'train' or 'attack'.
    state: bytes on a device that do not depend on the batch: weights, and in
      training the optimizer's and the gradient.
    rest: bytes that grow with a device's share of the batch.
    limit: bytes there are.
    slices: of the topology, along the data axis.
  """
  out = []
  data, expert, _ = mesh_shape(config, devices)
  room = max(limit - state, 0)
  if room:
    out += _smaller_batch(config, devices, use, rest / room)
  if use == 'train' and rest > limit / 4:
    out += _REMAT[config.train.remat]
  if state > limit / 4:
    out += _less_state(config, use, data, expert, devices, slices)
  factor = (state + rest) / limit
  out.append(f'a topology of {_power(factor) * devices} chips or more')
  return out


def _smaller_batch(config, devices, use, factor) -> list[str]:
  """Batches, or microbatches, that are smaller by a factor at least."""
  size = batch_size(config, use)
  out = []
  if use == 'train':
    for n in range(2, size + 1):
      parts = config.train.accumulate * n
      if n >= factor and _works(config, devices, 'accumulate', parts):
        out.append(
          f'--config.train.accumulate={parts}: the same batch in more parts'
        )
        break
  for smaller in range(int(size / factor), 0, -1):
    if size % smaller == 0 and _works(config, devices, use, smaller):
      out.append(
        f'--config.{use}.batch_size={smaller}'
        + (': another optimization, too' if use == 'train' else '')
      )
      break
  return out


def _works(config, devices, what, value) -> bool:
  config = config.copy_and_resolve_references()
  if what == 'accumulate':
    config.train.accumulate = value
  else:
    # The other uses take their batch from this one unless they have their own.
    for use in ('eval', 'attack'):
      config[use].batch_size = batch_size(config, use)
    config[what].batch_size = value
  try:
    validate(config, devices)
  except UserError:
    return False
  return True


def _less_state(config, use, data, expert, devices, slices) -> list[str]:
  out, opt, experts = [], config.train.optimizer, config.model.experts
  wider = [n for n in range(expert + 1, experts + 1) if experts % n == 0]
  places = devices // config.mesh.model // slices
  wider = [n for n in wider if places % n == 0]
  if wider:
    out.append(
      f'--config.mesh.expert={wider[-1]}: fewer experts on each device'
    )
  if (
    use == 'train' and data > 1 and not (config.mesh.fsdp or config.mesh.zero1)
  ):
    out.append(
      '--config.mesh.zero1=True: the optimizer split over the data axis'
    )
  if data > 1 and not config.mesh.fsdp:
    out.append(
      '--config.mesh.fsdp=True: weights and optimizer split over the data axis'
    )
  if use == 'train' and opt.name == 'adamw' and opt.moment_dtype == 'float32':
    out.append('--config.train.optimizer.moment_dtype=bfloat16')
  return out


def _power(factor: float) -> int:
  """The power of two that is at least `factor`, and at least 2."""
  return 2 ** max(1, (int(factor - 1e-9)).bit_length())
