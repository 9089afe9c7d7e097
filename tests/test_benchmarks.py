"""No test runs the benchmarks, so what they import is looked up."""

import ast
import importlib
import pathlib

import pytest

FILES = sorted((pathlib.Path(__file__).parents[1] / 'benchmarks').glob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_what_is_imported_of_the_project_is_there(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.ImportFrom):
      continue
    if node.module.split('.')[0] == 'vmoe_robust':
      module = importlib.import_module(node.module)
      for alias in node.names:
        if not hasattr(module, alias.name):
          importlib.import_module(f'{node.module}.{alias.name}')
