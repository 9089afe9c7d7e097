"""What results say of the software and the machine they come from."""

import platform
from importlib import metadata

import jax

RESULTS, RECORDS = 'results.json', 'records.parquet'
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy'),
  *('opencv-python-headless', 'pillow', 'scipy'),
)


def environment() -> dict[str, object]:
  """Versions and devices, which it takes to get the same numbers."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  return {
    'versions': versions | {'python': platform.python_version()},
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }
