"""How the devices of a mesh talk to each other: a number, not a hope."""

import jax
import pytest

from benchmarks import collectives as bench
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.cost.program import costs, held
from vmoe_robust.rehearse.programs import Programs

MESHES = pytest.mark.parametrize('mesh', bench.MESHES)
EXPERTS = pytest.mark.parametrize('experts', bench.EXPERT_MODES)
MODEL = bench.experiment().model
SPARSE = len(config_lib.moe_blocks(MODEL))
ROUTER = 4 * MODEL.hidden * MODEL.experts  # bytes of its weights


def moved(found):
  """Kind, axes and times of those that carry more than a few numbers."""
  return sorted(
    (one.kind, one.axes, one.count) for one in found if not bench.scalar(one)
  )


def scalars(found):
  return [one for one in found if bench.scalar(one)]


def wide(mesh):
  """The axes of the mesh that have more than one device."""
  return tuple(axis for axis, size in mesh.shape.items() if size > 1)


def exchanges(found, times):
  """Checks that rows travel so often, and takes that out."""
  sent = [one for one in found if one.kind == 'all-to-all']
  assert sum(one.count for one in sent) == times
  assert {one.axes for one in sent} == {('expert',)}
  return [one for one in found if one.kind != 'all-to-all']


@EXPERTS
@MESHES
def test_layer_forward(mesh, experts):
  mesh = mesh_lib.create(bench.MESHES[mesh])
  rest = exchanges(bench.layer(mesh, experts, 'forward'), 2)
  assert moved(rest) == []
  assert len(rest) == (experts == 'dropless')  # the number of rounds


@EXPERTS
@MESHES
def test_layer_forward_and_backward(mesh, experts):
  mesh = mesh_lib.create(bench.MESHES[mesh])
  rest = exchanges(bench.layer(mesh, experts, 'both'), 4)
  gradients = [('all-reduce', wide(mesh), 1)]  # the router's
  if mesh.shape['data'] > 1:  # the experts', which several devices hold
    gradients.append(('all-reduce', ('data',), 1))
  assert moved(rest) == sorted(gradients)
  assert min(one.bytes for one in rest if not bench.scalar(one)) == ROUTER
  assert len(scalars(rest)) == (experts == 'dropless')


@EXPERTS
@MESHES
def test_layer_gradient_by_its_input(mesh, experts):
  mesh = mesh_lib.create(bench.MESHES[mesh])
  rest = exchanges(bench.layer(mesh, experts, 'input'), 4)
  assert moved(rest) == []
  assert len(rest) == (experts == 'dropless')


@pytest.mark.slow
@EXPERTS
@MESHES
def test_training_step_reduces_gradients_once(mesh, experts):
  mesh = mesh_lib.create(bench.MESHES[mesh])
  rest = exchanges(bench.train_step(mesh, experts), 4 * SPARSE)
  assert {one.kind for one in rest} == {'all-reduce'}
  large = {one.axes: one.bytes for one in rest if not bench.scalar(one)}
  assert len(large) == len(moved(rest))
  params = Programs(bench.experiment(), mesh).state.params
  owned = held(
    [
      x
      for path, x in jax.tree_util.tree_leaves_with_path(params)
      if 'expert' in jax.tree.leaves(tuple(x.sharding.spec))
    ]
  )
  # With the gradients some metrics travel.
  metrics = 256
  assert 0 <= large.pop(wide(mesh)) - (held(params) - owned) <= metrics
  if mesh.shape['data'] > 1:
    assert 0 <= large.pop(('data',)) - owned <= metrics
  assert not large


@pytest.mark.slow
@EXPERTS
@MESHES
def test_attack_step_reduces_no_gradient(mesh, experts):
  mesh = mesh_lib.create(bench.MESHES[mesh])
  rest = exchanges(bench.attack_step(mesh, experts), 4 * SPARSE)
  assert moved(rest) == []
  # Devices agree on the number of rounds, one number a layer.
  assert len(rest) == (SPARSE if experts == 'dropless' else 0)
  assert all((one.dtype, one.bytes) == ('s32', 4) for one in rest)


@pytest.mark.slow
@pytest.mark.parametrize('attack', ['pgd', 'apgd_ce'])
def test_projections_onto_l1_balls_do_not_communicate(attack):
  config = bench.experiment()
  settings = dict(name=attack, norm='l1', eps=(1.0,), experts='capacity')
  config.attack.update(settings)
  programs = Programs(config, mesh_lib.create((8, 1, 1)))
  found = costs(programs.compile(attack), programs.mesh).collectives
  # What is in a loop happens more than once.
  assert [one for one in found if one.count > 1] == []


def test_the_table_counts_and_leaves_scalars_apart():
  mesh = mesh_lib.create((1, 8, 1))
  found = bench.summary(bench.layer(mesh, 'dropless', 'forward'))
  assert found['all-reduce of scalars'] == {'count': 1, 'bytes': 4}
  assert found['all-to-all']['count'] == 2
