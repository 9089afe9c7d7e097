"""Which cases of a parametrized test every `pytest` runs."""

from collections.abc import Container, Iterable

import pytest


def all_slow_but(quick: Container, values: Iterable) -> list:
  """The values for `parametrize`, of which those in `quick` always run."""
  return [
    value if value in quick else pytest.param(value, marks=pytest.mark.slow)
    for value in values
  ]
