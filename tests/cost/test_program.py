"""Programs whose collectives, FLOPs and bytes are known beforehand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.cost import collectives, hlo, program

ROWS = 4 * 6  # numbers on a device
X = (32, 6)
SPLIT = P(mesh_lib.BATCH_AXES)


def place(mesh):
  return mesh_lib.batch_sharding(mesh)


def compiled(f, mesh, out=SPLIT):
  f = jax.shard_map(f, mesh=mesh, in_specs=SPLIT, out_specs=out)
  x = jax.ShapeDtypeStruct(X, jnp.float32, sharding=place(mesh))
  return program.costs(jax.jit(f).lower(x).compile(), mesh)


def single(f, *shapes):
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return program.costs(jax.jit(f).lower(*shapes).compile(), mesh)


@pytest.mark.parametrize(
  'f, out, kind, axes, devices, moved',
  [
    (lambda x: lax.psum(x, 'data'), P('expert'), 'all-reduce', 'data', 2, ROWS),
    (
      lambda x: lax.psum(x, ('data', 'expert')),
      P(),
      'all-reduce',
      'data expert',
      8,
      ROWS,
    ),
    (
      lambda x: lax.all_to_all(x, 'expert', 0, 1, tiled=True),
      SPLIT,
      'all-to-all',
      'expert',
      4,
      ROWS,
    ),
    (
      lambda x: lax.all_gather(x, 'expert', tiled=True),
      SPLIT,
      'all-gather',
      'expert',
      4,
      4 * ROWS,
    ),
    (
      lambda x: lax.psum_scatter(x, 'expert', tiled=True),
      SPLIT,
      'reduce-scatter',
      'expert',
      4,
      ROWS,
    ),
    (
      lambda x: lax.ppermute(x, 'data', [(0, 1), (1, 0)]),
      SPLIT,
      'collective-permute',
      'data',
      2,
      ROWS,
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_collective_along_its_axes(f, out, kind, axes, devices, moved):
  (found,) = compiled(f, mesh_lib.create((2, 4, 1)), out).collectives
  assert (found.kind, found.axes) == (kind, tuple(axes.split()))
  assert (found.count, found.dtype, found.slices) == (1, 'f32', 1)
  assert found.devices == devices
  assert found.bytes == 4 * moved


def test_devices_that_talk_to_themselves_are_left_out():
  mesh = mesh_lib.create((8, 1, 1))
  f = lambda x: lax.psum(lax.all_to_all(x, 'expert', 0, 1, tiled=True), 'model')
  assert compiled(f, mesh).collectives == ()


def test_loops_multiply_and_open_ones_are_named():
  mesh = mesh_lib.create((8, 1, 1))

  def turn(_, x):
    return lax.psum(x, 'data') * lax.axis_index('data')

  def nested(x):
    inner = lambda _, x: lax.fori_loop(0, 3, turn, x)
    return lax.fori_loop(0, 5, inner, turn(0, x))

  found = compiled(nested, mesh)
  assert sum(one.count for one in found.collectives) == 16
  assert found.open_loops == ()

  def until(x):
    going = lambda state: state[0] < state[1][0, 0].astype(int)
    step = lambda state: (state[0] + 1, turn(0, state[1]))
    return lax.while_loop(going, step, (lax.axis_index('data') * 0, x))[1]

  found = compiled(until, mesh)
  assert [one.count for one in found.collectives] == [1]
  assert len(found.open_loops) == 1 and 'while' in found.open_loops[0]


def test_what_each_kind_puts_on_the_wires():
  def one(kind, slices=1, hops=1.0):
    return collectives.Collective(
      kind, 'f32', 800, 1, 8, ('data',), slices, hops, ''
    )

  assert one('all-reduce').links == 1400
  assert one('all-gather').links == one('reduce-scatter').links == 700
  assert one('all-to-all', hops=2.5).links == 1750
  assert one('collective-permute', hops=2.5).links == 2000
  assert one('all-reduce').network == one('all-reduce', slices=2).links == 0
  assert one('all-reduce', slices=2).network == 1400


@pytest.mark.parametrize(
  'f, shapes, flops',
  [
    (lambda a, b: a @ b, [(4, 6), (6, 5)], 2 * 4 * 6 * 5),
    (
      lambda a, b: jnp.einsum('nij,nkj->nik', a, b),
      [(3, 4, 6), (3, 5, 6)],
      2 * 3 * 4 * 5 * 6,
    ),
    (
      lambda a, b: lax.conv(a, b, (4, 4), 'VALID'),
      [(2, 3, 8, 8), (5, 3, 4, 4)],
      2 * (2 * 2 * 2) * (3 * 4 * 4) * 5,
    ),
    (  # what the padding would contribute is not counted
      lambda a, b: lax.conv(a, b, (1,), [(2, 2)]),
      [(1, 1, 3), (1, 1, 3)],
      2 * 9,
    ),
    (
      lambda a, b: lax.fori_loop(0, 7, lambda _, x: x @ b, a),
      [(6, 6), (6, 6)],
      7 * 2 * 6**3,
    ),
  ],
  ids=['product', 'batched', 'patches', 'padding', 'loop'],
)
def test_flops(f, shapes, flops):
  assert single(f, *shapes).flops == flops


def test_bytes_to_and_from_memory():
  size, n = 4 * 1000, 1000
  assert single(lambda x: x + 1, (n,)).bytes == 2 * size
  # A part of an array moves alone.
  part = single(
    lambda x: lax.dynamic_slice(x, (x[0].astype(int),), (10,)), (n,)
  )
  assert part.bytes < size
  once = single(lambda x: jnp.sin(x), (n,)).bytes
  loop = single(lambda x: lax.fori_loop(0, 9, lambda _, x: jnp.sin(x), x), (n,))
  assert 9 * once <= loop.bytes < 12 * once


def test_memory_of_a_donated_state():
  mesh = mesh_lib.create((8, 1, 1))
  x = jax.ShapeDtypeStruct(X, jnp.float32, sharding=place(mesh))
  assert program.held([x, x]) == 2 * 4 * ROWS
  keep = jax.jit(lambda x: x + 1, out_shardings=place(mesh))
  give = jax.jit(lambda x: x + 1, out_shardings=place(mesh), donate_argnums=0)
  keep, give = (program.memory(f.lower(x).compile()) for f in (keep, give))
  assert keep.arguments == give.arguments == keep.outputs == 4 * ROWS
  assert give.outputs == 0
  assert keep.peak - give.peak == keep.outputs


def test_held_counts_the_part_of_a_device():
  mesh = mesh_lib.create((2, 4, 1))
  whole = jax.device_put(jnp.zeros((8, 4)), mesh_lib.replicated(mesh))
  split = jax.device_put(jnp.zeros((8, 4)), NamedSharding(mesh, P('expert')))
  assert program.held({'a': whole, 'b': split, 'c': ()}) == 4 * 32 + 4 * 8


# As the TPU's compiler writes it: nothing says how often the loop turns, and
# what a collective starts is finished elsewhere.
TPU = """
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)S(1)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %next = s32[]{:T(128)} add(%i, %one)
  %start = (f32[8,4], f32[32,4]) all-gather-start(%x), replica_groups=GROUPS
  %done = f32[32,4]{1,0} all-gather-done(%start)
  %y = f32[8,4]{1,0:T(8,128)S(1)} slice(%done), slice={[0:8], [0:4]}
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)S(1)}) tuple(%next, %y)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  %p.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: f32[8,4]) -> f32[8,4] {
  %zero = s32[]{:T(128)} constant(2)
  %copy = s32[]{:T(128)} copy(%zero)
  %x.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %tuple = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%copy, %x.1)
  %while = (s32[], f32[8,4]) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%while), index=1
}
"""


@pytest.mark.parametrize(
  'groups, axes',
  [
    ('{{0,1,2,3},{4,5,6,7}}', ('expert',)),
    ('[2,4]<=[8]', ('expert',)),
    ('[4,2]<=[2,4]T(1,0)', ('data',)),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ('data',)),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", ('data', 'expert')),
    ("mesh['axis_0'=8] {'axis_0':(1)2}", ('data',)),
    ("mesh['axis_0'=8] {'axis_0':(2)4}", ('expert',)),
    ('{}', ('data', 'expert')),
  ],
)
def test_the_words_of_the_tpu(groups, axes):
  mesh = mesh_lib.create((2, 4, 1))
  costs = program.read(TPU.replace('GROUPS', groups), mesh)
  (found,) = costs.collectives
  assert (found.kind, found.count) == ('all-gather', 7)
  assert (found.axes, found.bytes) == (axes, 4 * 32 * 4)
  assert costs.open_loops == ()


def test_memory_on_the_chip_is_told_apart():
  body = hlo.parse(TPU).computations['body']
  assert [array.fast for array in body['y'].arrays] == [True]
  assert [array.fast for array in body['start'].arrays] == [False, False]


def test_a_kernel_says_what_it_costs():
  kernel = (
    '  ROOT %k = bf16[8,8]{1,0} custom-call(%x), '
    'custom_call_target="tpu_custom_call", backend_config={"custom_call_config"'
    ':{"body":"","cost_estimate":{"flops":"1024","bytes_accessed":"512"}}}'
  )
  other = '  %c = u8[4]{0} custom-call(), custom_call_target="AllocateBuffer"'
  text = '\n'.join(
    [
      'ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {',
      '  %x = bf16[8,8]{1,0} parameter(0)',
      *(other, kernel, '}'),
    ]
  )
  found = program.read(text, mesh_lib.create((8, 1, 1)))
  assert (found.flops, found.bytes) == (1024, 512)


def test_a_library_that_does_not_say_what_it_costs_leaves_it_unknown():
  class Compiled:
    def as_text(self):
      return '\n'.join(
        [
          'ENTRY %main (x: f32[8,8]) -> f32[8,8] {',
          '  %x = f32[8,8]{1,0} parameter(0)',
          '  ROOT %y = f32[8,8]{1,0} custom-call(%x, %x), '
          'custom_call_target="__cublas$gemm"',
          '}',
        ]
      )

  assert program.flops(Compiled(), mesh_lib.create((8, 1, 1))) is None


def test_what_hosts_carry_between_slices():
  transfer = (
    '_xla_host_transfer_rendezvous="all-reduce.1_0",'
    '_xla_megascale_transfer_type="ALL_REDUCE"'
  )
  text = '\n'.join(
    [
      'ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {',
      '  %x = bf16[8,8]{1,0} parameter(0)',
      '  %t = token[] after-all()',
      '  %s = (bf16[8,8]{1,0}, u32[], token[]) send(%x, %t), channel_id=2, '
      f'frontend_attributes={{{transfer}}}',
      '  %r = (bf16[8,8]{1,0}, u32[], token[]) recv(%t), channel_id=1, '
      f'frontend_attributes={{{transfer}}}',
      '  %d = (bf16[8,8]{1,0}, token[]) recv-done(%r), channel_id=1',
      '  ROOT %y = bf16[8,8]{1,0} get-tuple-element(%d), index=0',
      '}',
    ]
  )
  # On devices that are all of one slice nothing is sent.
  assert program.read(text, mesh_lib.create((8, 1, 1))).collectives == ()


@pytest.mark.parametrize(
  'text',
  ['', 'no program', 'HloModule x\n\nENTRY %m {\n  ROOT %a = f32[', None],
)
def test_a_text_that_cannot_be_read_gives_no_flops(text):
  class Compiled:
    def as_text(self):
      return text

  mesh = mesh_lib.create((8, 1, 1))
  assert program.flops(Compiled(), mesh) is None


def test_flops_are_those_of_the_costs():
  mesh = mesh_lib.create((8, 1, 1))
  compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile()
  assert program.flops(compiled, mesh) == program.costs(compiled, mesh).flops
