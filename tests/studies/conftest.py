"""The small models and data of `tests/evaluate`, and the form of results."""

import json

import jax
import jsonschema
import numpy as np
import pytest

from tests.evaluate.conftest import (
  config,
  in_memory,
  model_of,
  opened,
  small_config,
)
from vmoe_robust.report.results import SCHEMA

__all__ = [
  'check_form',
  'config',
  'identical',
  'in_memory',
  'model_of',
  'opened',
  'small_config',
]


def identical(params):
  """All experts of a sparse block become its first one."""
  for block in params['Encoder'].values():
    if 'Moe' in block:
      block['Moe']['Mlp'] = jax.tree.map(
        lambda a: np.broadcast_to(np.asarray(a)[:1], a.shape).copy(),
        block['Moe']['Mlp'],
      )


@pytest.fixture
def check_form():
  """Holds a `results.json` against its schema; returns what is in it."""

  def check(workdir):
    found = json.loads((workdir / 'results.json').read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    return found

  return check


@pytest.fixture
def two_experts(config, model_of):
  """A model in closed form: two experts, one a token, and a linear router.

  A token is (z, -z, C, -C, 0, ...) with z = w . (2 x - 1) of its 16 pixels;
  attention adds nothing, so that the router sees the token over its deviation,
  and scores the experts by z and -z. Expert 0 returns `outputs[0]`, whatever it
  sees, and expert 1 `outputs[1]`.
  """

  def make(w, c, outputs):
    config.model.update(dict(layers=1, experts=2))
    config.model.router.selected = 1
    model, params = model_of(config)
    block = params['Encoder']['encoderblock_0']
    zero = lambda tree: jax.tree.map(np.zeros_like, tree)
    block['SelfAttention']['out'] = zero(block['SelfAttention']['out'])
    params['Encoder']['posembed_input'] = zero(
      params['Encoder']['posembed_input']
    )
    kernel = np.zeros((4, 4, 1, 16), np.float32)
    kernel[..., 0, 0], kernel[..., 0, 1] = w, -w
    bias = np.zeros(16, np.float32)
    bias[2], bias[3] = c, -c
    params['embedding'] = {'kernel': kernel, 'bias': bias}
    router = np.zeros((16, 2), np.float32)
    router[0] = 1, -1
    block['Moe']['Router']['dense']['kernel'] = router
    mlp = block['Moe']['Mlp']
    for name in ('Dense_0', 'Dense_1'):
      mlp[name] = zero(mlp[name])
    mlp['Dense_1']['bias'] = np.asarray(outputs, np.float32)
    return model, params

  return make


def patches(images):
  """Pixels of each token [images, 4 tokens, 4, 4] of images [.., 8, 8, 1]."""
  cut = np.asarray(images).reshape(-1, 2, 4, 2, 4)
  return cut.transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)
