"""The model is traced once for many programs, and nothing large is kept."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def trace_of(program, *args):
  """The part of a program that runs the model."""
  (found,) = (
    equation.params['jaxpr']
    for equation in jax.make_jaxpr(program)(*args).eqns
    if equation.params.get('name') == '_run'
  )
  return found


def test_programs_share_the_trace_of_equal_models(vmoe, weights_of):
  images = jnp.zeros((2, 8, 8, 3))
  first, again, other = vmoe(), vmoe(), vmoe(router=dict(selected=2))
  params = weights_of(first)
  judge = lambda params, x: first.apply(params, x)[0].argmax(-1)
  loss = lambda params, x: again.apply(params, x)[0].sum()
  trace = trace_of(judge, params, images)
  assert trace_of(loss, params, images) is trace
  one = lambda params, x: other.apply(params, x)[0].sum()
  assert trace_of(one, params, images) is not trace
  assert trace_of(judge, params, images[:1]) is not trace
  training = lambda params, x: first.apply(params, x, key=jax.random.key(0))[0]
  assert trace_of(training, params, images) is not trace


@pytest.mark.slow
def test_neither_weights_nor_interventions_are_kept(vmoe, weights_of):
  model = vmoe()
  params, images = weights_of(model), jnp.zeros((2, 8, 8, 3))
  shift = jnp.ones(())

  def intervene(block, tokens, routing):
    return tokens + shift * jnp.arange(tokens.shape[-1]), routing

  clean, _ = model.apply(params, images)
  changed, _ = model.apply(params, images, intervene=intervene)
  assert np.abs(clean - changed).max() > 1e-6
  leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
  left = [weakref.ref(shift), weakref.ref(intervene), *leaves]
  del params, shift, intervene
  gc.collect()
  assert [one() for one in left if one() is not None] == []
