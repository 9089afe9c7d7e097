"""`results.json`: its form, and how it is read.

`results.schema.json` beside this file is the form; docs/results-format.md
explains it.
"""

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import jax
import pyarrow as pa
from etils import epath
from pyarrow import parquet

from vmoe_robust import files
from vmoe_robust.config import UserError
from vmoe_robust.report import statistics

RESULTS, RECORDS, FIGURES = 'results.json', 'records.parquet', 'figures'
SCHEMA = Path(__file__).with_name('results.schema.json')
FORMAT, VERSION = 'vmoe_robust results', 1
_PARTS = {
  **dict.fromkeys(('asked', 'weights', 'data', 'summary', 'files'), dict),
  **dict.fromkeys(('rows', 'warnings'), list),
}
# What a file of another form, or a damaged one, raises where it is used.
DAMAGE = (
  *(ArithmeticError, AttributeError, EOFError, LookupError, OSError),
  *(RuntimeError, TypeError, UserError, ValueError),
  *(zipfile.BadZipFile, zlib.error),
)
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy'),
  *('opencv-python-headless', 'pillow', 'scipy'),
)


class Results(dict):
  """What is in `results.json`, with the records that it comes from."""

  def __init__(self, found: dict, folder: epath.Path):
    super().__init__(found)
    self.folder = folder

  @functools.cached_property
  def records(self) -> pa.Table:
    """The table of `records.parquet`, read when it is first asked for.

    Raises:
      UserError: the file is missing, damaged or of another run.
    """
    return self.read()

  def read(self, columns: list[str] | None = None) -> pa.Table:
    """The table, or those of some columns that it has, which is not kept.

    Raises:
      UserError: the file is missing, damaged or of another run.
    """
    about = self['files']['records']
    path = self.folder / about['name']
    try:
      with path.open('rb') as file:
        found = parquet.read_table(
          file, columns=columns, page_checksum_verification=True
        )
    except FileNotFoundError as error:
      raise UserError(
        f'path={path} is missing; copy the whole folder of the run'
      ) from error
    except (pa.ArrowException, OSError) as error:
      raise UserError(
        f'path={path} is damaged ({error}); copy it again, or run again in '
        'another --workdir'
      ) from error
    if found.num_rows != about['rows']:
      raise UserError(
        f'path={path} has {found.num_rows} rows and {RESULTS} says '
        f'{about["rows"]}; they are of different runs: copy both again'
      )
    return found


def read_results(path: str | os.PathLike) -> Results:
  """Reads the results of a run, of whatever mode.

  Args:
    path: the run's folder, or its `results.json`, here or at `gs://`.

  Returns:
    The dictionary of docs/results-format.md; its attribute `records` is a
    pyarrow table.

  Raises:
    UserError: there are none, they are damaged, or another program's or
      version's.
  """
  path = files.path(path, 'path')
  if '://' in os.fspath(path):
    path = files.absolute(path, 'path')
  path = path / RESULTS if path.is_dir() else path
  try:
    found = json.loads(path.read_text())
  except OSError as error:
    raise UserError(
      f'path={path} cannot be read ({error.strerror or error}); give '
      f'the folder of a finished run, which has {RESULTS}'
    ) from error
  except ValueError as error:
    raise UserError(
      f'path={path} is damaged: it is no JSON ({error}); copy it again, or run '
      'again in another --workdir'
    ) from error
  _check(path, found)
  return Results(found, path.parent)


def _check(path: epath.Path, found: object):
  if not isinstance(found, dict) or found.get('format') != FORMAT:
    raise UserError(
      f"path={path} has no format={FORMAT!r}: it is another program's, or of a "
      'version before results had a form; run again in another --workdir'
    )
  if found.get('format_version') != VERSION:
    raise UserError(
      f'path={path} has format_version={found.get("format_version")!r}; this '
      f'program reads {VERSION}: use the version of vmoe_robust that wrote it, '
      'or run again in another --workdir'
    )
  wrong = [
    f'{name!r} is no {"object" if kind is dict else "list"}'
    for name, kind in _PARTS.items()
    if not isinstance(found.get(name), kind)
  ]
  if not wrong and not all(
    isinstance(row, dict) and 'condition' in row for row in found['rows']
  ):
    wrong = ["one of 'rows' has no 'condition'"]
  if wrong:
    raise UserError(
      f'path={path} is damaged: {wrong[0]}; copy it again, or run again in '
      'another --workdir'
    )


def environment() -> dict[str, object]:
  """Command, versions and devices: what it takes to get the same numbers."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  versions['vmoe_robust'] = metadata.version('vmoe_robust')
  if found := revision():
    versions['vmoe_robust_revision'] = found
  return {
    'command': _command(),
    'software': versions | {'python': platform.python_version()},
    'hardware': {
      'devices': jax.device_count(),
      'kind': jax.devices()[0].device_kind,
      'processes': jax.process_count(),
    },
    'intervals': {
      'level': statistics.LEVEL,
      'rates': 'Wilson score',
      'means': f'percentile bootstrap over images, {statistics.RESAMPLES} '
      "resamples; of images that are all alike Wilson's bound",
    },
  }


def _command() -> str | None:
  """What was typed; None in a notebook or a script of the user."""
  spec = getattr(sys.modules.get('__main__'), '__spec__', None)
  if spec is None or not spec.name.startswith('vmoe_robust.'):
    return None
  module = spec.name.removesuffix('.__main__')
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


@functools.cache
def revision() -> str | None:
  """The Git revision of this program; None where it is no working copy.

  It is that of the first call: programs ask before they begin, for the files
  may be other ones when results are written.
  """
  root = Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40']
  try:
    found = subprocess.run(
      command, cwd=root, capture_output=True, text=True, timeout=10, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return found.stdout.strip()
