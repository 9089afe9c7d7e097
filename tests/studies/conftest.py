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
