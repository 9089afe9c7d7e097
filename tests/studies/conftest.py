"""The small models and data of `tests/evaluate`, and the form of results."""

import json

import jsonschema
import pytest

from tests.evaluate.conftest import config, in_memory, model_of, opened
from vmoe_robust.report.results import SCHEMA

__all__ = ['check_form', 'config', 'in_memory', 'model_of', 'opened']


@pytest.fixture
def check_form():
  """Holds a `results.json` against its schema; returns what is in it."""

  def check(workdir):
    found = json.loads((workdir / 'results.json').read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    return found

  return check
