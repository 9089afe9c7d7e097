r"""Products of experts on TPUs: JAX's kernel beside tokamax's, as compiled.

No TPU is needed: both are compiled ahead of time for one chip, with the rows
and experts of a V-MoE-B/16 (E = 32, K = 2) on a chip of a v5e-64 whose mesh has
four shards of experts. What is compared are the bytes that the compiler says
the kernels move and the seconds that it expects; of gradients it expects none.

  pip install -e '.[tpu]' tokamax  # Python 3.12
  TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_kernels.py --topology=v5e:2x2
"""

import functools

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  SingleDeviceSharding,
)

from vmoe_robust.models.grouped import TILING, megablox
from vmoe_robust.rehearse import topology
from vmoe_robust.report.table import table

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2', 'Of the TPU.')

ROWS, WIDTH, HIDDEN, EXPERTS = 64 * 196 * 2, 768, 3072, 8


def products():
  """By name, functions of rows, matrices and counts of rows."""
  found = {f'megablox, tiles {TILING}': megablox}
  try:
    from tokamax._src.ops.ragged_dot import base, pallas_mosaic_tpu
  except ImportError:
    return found
  kernel = functools.partial(
    pallas_mosaic_tpu.PallasMosaicTpuRaggedDot, bypass_device_check=True
  )
  sizes = dict(zip(('tile_m', 'tile_k', 'tile_n'), TILING, strict=True))
  configs = {
    'tokamax, its own tiles': None,
    f'tokamax, tiles {TILING}': pallas_mosaic_tpu.Config(**sizes),
  }
  for name, config in configs.items():
    inner = lambda *args, config=config, **more: kernel(config=config)(
      *args, **more
    )
    vjp = functools.partial(
      base.vjp, dlhs_ragged_dot=inner, drhs_ragged_dot=inner
    )
    op = kernel(config=config, vjp=vjp)
    found[name] = lambda rows, matrices, count, op=op: op(
      rows, matrices, group_sizes=count
    )
  return found


def main(argv: list[str]) -> None:
  """Compiles each product and its gradient, and prints what they cost."""
  del argv
  name = _TOPOLOGY.value
  device = topology.devices(name)[0]
  one = SingleDeviceSharding(device)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=one)
  given = (
    shape((ROWS, WIDTH), jnp.bfloat16),
    shape((EXPERTS, WIDTH, HIDDEN), jnp.bfloat16),
    shape((EXPERTS,), jnp.int32),
  )
  kind = AbstractDevice(
    device_kind=device.device_kind, num_cores=1, platform='tpu'
  )
  mesh = AbstractMesh(
    (1,), ('x',), axis_types=(AxisType.Auto,), abstract_device=kind
  )
  lines = []
  for label, product in products().items():
    square = lambda *args, f=product: (f(*args).astype(jnp.float32) ** 2).sum()
    for what, function in (
      ('forward', product),
      ('gradient', jax.grad(square, (0, 1))),
    ):
      with jax.sharding.use_abstract_mesh(mesh):
        cost = jax.jit(function).lower(*given).compile().cost_analysis()
      seconds = cost.get('optimal_seconds', 0)
      lines.append(
        [label, what, f'{cost["flops"] / 1e9:.0f}']
        + [f'{cost["bytes accessed"] / 1e6:.0f}']
        + [f'{1e3 * seconds:.2f}' if seconds > 0 else '-']
      )
  print(table(('kernel', name, 'GFLOP', 'MB', 'ms expected'), lines))


if __name__ == '__main__':
  app.run(main)
