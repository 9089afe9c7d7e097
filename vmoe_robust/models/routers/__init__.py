"""The routers there are; each file has a `Router` module and a `run`."""

import importlib

from vmoe_robust.config import ROUTERS as NAMES

ROUTERS = {
  name: importlib.import_module(f'vmoe_robust.models.routers.{name}')
  for name in NAMES
}
