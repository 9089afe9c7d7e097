"""Checksums of a checkpoint's files, because Orbax keeps none.

A flipped bit in array data restores as a wrong number without an error. So
`CHECKSUMS.json` has the CRC-32C and the size of every file of a checkpoint, and
a checksum of itself. CRC-32C finds every single flipped bit, and misses one in
four billion of other accidents.
"""

import dataclasses
import json
import os

import google_crc32c
from etils import epath

from vmoe_robust.files import is_address

SEAL = 'CHECKSUMS.json'
_DRAFT = f'{SEAL}.draft'
_CHUNK = 1 << 24  # bytes read at once
_NAMED = 3  # damaged files, in a message


@dataclasses.dataclass(frozen=True)
class About:
  """What a seal says of a checkpoint, besides the checksums of its files.

  Attributes:
    step: by which its directory is called in the end.
    weights: `weights_checksum` of what is evaluated.
    metrics: what was measured at its step.
    unmeasured: a measurement was due, and is left to `add_metrics`.
  """

  step: int
  weights: str
  metrics: dict[str, float]
  unmeasured: bool


def to_json(values: dict) -> str:
  """JSON with a checksum in it, for people to read and `from_json` to check."""
  return json.dumps(
    values | {'checksum': _of_values(values)}, indent=2, sort_keys=True
  )


def from_json(text: str | bytes) -> dict:
  """What `to_json` wrote.

  Raises:
    ValueError: it was written otherwise.
  """
  values = json.loads(text)
  if not isinstance(values, dict) or 'checksum' not in values:
    raise ValueError('there is no checksum in it')
  if values.pop('checksum') != _of_values(values):
    raise ValueError('its checksum is another')
  return values


def measure(directory: epath.Path, process: int) -> None:
  """Leaves the checksums of the files that a process wrote, for `seal`.

  Orbax gives each process a folder of its own for the arrays' data.
  """
  mine = {
    name: _checksum(path, sync=True)
    for name, path in _files(directory).items()
    if any(p.endswith(f'process_{process}') for p in name.split('/'))
  }
  _share(directory, process).write_text(json.dumps(mine))


def seal(directory: epath.Path, about: About, processes: int) -> None:
  """Writes the checksums of all files below a finished checkpoint.

  Args:
    directory: the checkpoint's.
    about: what else to write.
    processes: how many left checksums by `measure`.
  """
  known = {}
  for process in range(processes):
    share = _share(directory, process)
    if share.exists():
      known |= json.loads(share.read_text())
      share.unlink()
  files = {
    name: known.get(name) or _checksum(path, sync=True)
    for name, path in _files(directory).items()
  }
  _write(directory, dataclasses.asdict(about) | {'files': files})


def add_metrics(
  directory: epath.Path, metrics: dict[str, float], extra: dict
) -> None:
  """Writes what was measured of a checkpoint after it was sealed.

  Args:
    directory: of the checkpoint.
    metrics: what was measured.
    extra: what it changed in what the checkpoint has under that name.

  Raises:
    ValueError: the seal is missing or damaged.
  """
  values = read_seal(directory)
  values |= {'unmeasured': False, 'metrics': metrics, 'extra': extra}
  _write(directory, values)


def _write(directory, values):
  """The whole seal or none of it, as an object in a bucket is written."""
  draft = directory / (SEAL if is_address(directory) else _DRAFT)
  with draft.open('w') as file:
    file.write(to_json(values))
    file.flush()
    _sync(file, directory)
  if draft.name != SEAL:
    draft.replace(directory / SEAL)


def read_seal(directory: epath.Path) -> dict:
  """`files`, their checksums and sizes, and `metrics` of a checkpoint.

  Raises:
    ValueError: the seal is missing, damaged, or of another step than the
      directory's name. Older seals do not say their step.
  """
  try:
    found = from_json((directory / SEAL).read_bytes())
  except OSError as error:
    raise ValueError(f'{SEAL} is missing') from error
  except ValueError as error:
    raise ValueError(f'{SEAL} has changed') from error
  step = found.get('step')
  if step is not None and str(step) != directory.name:
    raise ValueError(f'it is a copy of step {step}, under another name')
  return found


def fingerprint(directory: epath.Path) -> str:
  """By which the weights of a checkpoint are known again.

  It is `weights_checksum` of what is evaluated. Older versions did not keep it:
  of their checkpoints it is of the files' checksums, which differ from one run
  to the next even where the weights are equal.

  Raises:
    ValueError: the seal is missing or damaged.
  """
  values = read_seal(directory)
  if 'weights' in values:
    return values['weights']
  if 'step' in values:  # and not of what was measured, which may come later
    values = {name: values[name] for name in ('step', 'files')}
  return _of_values(values)


def damage(directory: epath.Path, part: int = 0, parts: int = 1) -> list[str]:
  """What is wrong with a checkpoint, a file a line; nothing if it is good.

  Args:
    directory: the checkpoint's.
    part: which of the files to read, so that processes can share the work.
    parts: how many share it.
  """
  try:
    expected = read_seal(directory)['files']
    there = _files(directory)
  except (OSError, ValueError) as error:
    return [str(error)]
  found = [f'{name} is missing' for name in expected if name not in there]
  found += [f'{name} is not part of it' for name in there.keys() - expected]
  both = sorted(expected.keys() & there.keys())
  for name in both[part::parts]:
    try:
      if _checksum(there[name]) != expected[name]:
        found.append(f'{name} has changed')
    except OSError as error:
      found.append(f'{name} cannot be read ({error.strerror})')
  return found


def listed(damage: list[str]) -> str:
  """The first of what `damage` found, in a line."""
  more = f' and {len(damage) - _NAMED} more' * (len(damage) > _NAMED)
  return ', '.join(damage[:_NAMED]) + more


def size(directory: epath.Path) -> int:
  """Bytes of a checkpoint's files."""
  return sum(path.stat().length for path in _files(directory).values())


def _files(directory, prefix='') -> dict[str, epath.Path]:
  found = {}
  for path in sorted(directory.iterdir()):
    name = prefix + path.name
    if path.is_dir():
      found |= _files(path, name + '/')
    elif name not in (SEAL, _DRAFT):
      found[name] = path
  return found


def _share(directory, process) -> epath.Path:
  return directory / f'{SEAL}.{process}'


def _checksum(path, sync=False) -> list:
  checksum, size = google_crc32c.Checksum(), 0
  with path.open('rb') as file:
    if sync:
      _sync(file, path)
    while chunk := file.read(_CHUNK):
      checksum.update(chunk)
      size += len(chunk)
  return [checksum.hexdigest().decode(), size]


def _sync(file, path):
  """What is sealed must outlive a power cut, as what is in a bucket does."""
  if not is_address(path):
    os.fsync(file.fileno())


def _of_values(values: dict) -> str:
  text = json.dumps(values, sort_keys=True)
  return f'{google_crc32c.value(text.encode()):08x}'
