"""The formula against published numbers and against the compiler's count."""

import functools

import jax
import jax.numpy as jnp
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import presets
from vmoe_robust.config import default
from vmoe_robust.models import flops, stem, unbox


@pytest.mark.parametrize(
  'fields, giga', [({}, 35.13), (presets.SPARSE, 46.34)], ids=['vit', 'vmoe']
)
def test_b16_at_224_pixels(fields, giga):
  config = config_lib.default().model
  config.update(presets.model_size('B/16'))
  config.update(dict(fields, num_classes=1000))
  assert flops.forward(config, 224) / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize(
  'fields, router',
  [
    (dict(head='token', experts=0), {}),
    (dict(head='gap', experts=0, pre_logits=64), {}),
    (dict(head='map', experts=0), {}),
    (dict(head='seqpool', experts=0), {}),
    ({}, {'name': 'soft', 'slots': 3}),
    ({}, {'name': 'expert_choice', 'selected': 2}),
    ({}, {'name': 'top_k', 'selected': 2}),
    ({}, {'name': 'top_k', 'unit': 'image', 'gate': 'sigmoid'}),
    ({}, {'name': 'hash', 'selected': 2}),
    (dict(expert_mlp=128, shared_experts=2), {'selected': 2}),
  ],
  ids=lambda value: '-'.join(map(str, value.values())),
)
def test_the_compiler_counts_as_much(vmoe, fields, router):
  # As many slots as are used, so that the active FLOPs are all there are.
  router = dict(router, capacity_factor=1.0, group_images=4)
  fields = dict(hidden=256, mlp=512, num_classes=50, **fields)
  model = vmoe(router=router, **fields)
  params = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0))))
  images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
  # Without loops over blocks, each of which would be counted once.
  run = functools.partial(model.apply, experts='capacity', plain=True)
  run = jax.jit(run)
  counted = run.lower(params, images).cost_analysis()['flops'] / 4
  # Normalisations, softmax and GELU are a little more.
  formula = flops.forward(model.module.config, 8)
  assert 0.97 * counted < formula < counted


@pytest.mark.parametrize('patch', [2, 4, 16])
def test_the_compiler_counts_the_convolutions(patch, config_of):
  config = config_of(patch=patch, hidden=32)
  module = stem.ConvStem(patch, 32, jnp.dtype('float32'), stem.product)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), images)
  run = jax.jit(lambda p, images: module.apply(unbox(p), images))
  counted = run.lower(params, images).cost_analysis()['flops']
  formula = flops.forward(config_of(patch=patch, hidden=32, stem='conv'), 64)
  formula -= flops.forward(config, 64) - 2 * 64**2 * 3 * 32
  # The compiler counts normalisations and GELU besides.
  assert 0.8 * counted < formula < counted


def test_every_slot_of_an_expert_that_chooses_is_filled():
  """17 tokens x 1 of 8 experts x 1.05: 3 tokens an expert, 24 in all."""
  config = default().model
  config.update(dict(patch=2, hidden=8, layers=1, heads=1, mlp=4, experts=8))
  config.update(dict(num_classes=2, channels=1, head='token', moe_every=1))
  config.router.update(dict(name='top_k', selected=1, capacity_factor=1.05))
  once = flops.forward(config, 8, 1)
  config.router.name = 'expert_choice'
  assert flops.forward(config, 8, 1) - once == 4 * 8 * 4 * (24 - 17)
