"""What an attack that is cut short goes on from.

A folder holds x_adv of all examples, written in place, and numbered snapshots
of everything else. The newest one counts as soon as its JSON file is there;
whatever was written after it is written again, alike.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from vmoe_robust.config import UserError
from vmoe_robust.distributed import together
from vmoe_robust.files import replacing, to_json, write_json

_IDENTITY, _STATE, _X_ADV = 'attack.json', 'state.json', 'x_adv.npy'


def claim(folder: str | os.PathLike, identity: dict):
  """Makes a folder that of one attack.

  Args:
    folder: made if it is not there.
    identity: fields of the attack and their values.

  Raises:
    UserError: the folder is that of another attack.
  """
  folder = pathlib.Path(folder)
  path, ours = folder / _IDENTITY, json.loads(to_json(identity))
  theirs = json.loads(path.read_text()) if path.exists() else ours
  if theirs != ours:
    name = next(k for k in ours | theirs if ours.get(k) != theirs.get(k))
    raise UserError(
      f'{folder} has the beginning of another attack: {name} is '
      f'{ours.get(name)!r} here and was {theirs.get(name)!r}; choose another '
      'folder, or delete this one'
    )
  together('claim')
  if jax.process_index() == 0:
    write_json(path, ours)


def release(folder: str | os.PathLike):
  """Deletes a folder whose attack is done."""
  together('release')
  if jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)
  together('released')


class Snapshots:
  """In memory alone without a folder; then nothing is kept."""

  def __init__(self, folder: str | os.PathLike | None, layout: list):
    """Nothing is read or written yet.

    Args:
      folder: where it is kept, which all processes see.
      layout: of the devices' arrays; those of another one are not read.
    """
    self._folder = None if folder is None else pathlib.Path(folder)
    self._number, self._layout = 0, layout
    if self._folder is not None:
      self._folder.mkdir(parents=True, exist_ok=True)

  def x_adv(self, shape: tuple[int, ...]) -> np.ndarray:
    """Room for all attacked images, with what is there already."""
    if self._folder is None:
      return np.zeros(shape, np.float32)
    path = self._folder / _X_ADV
    if jax.process_index() == 0 and not path.exists():
      with replacing(path) as draft, draft.open('wb') as file:
        np.lib.format.write_array_header_2_0(
          file, {'descr': '<f4', 'fortran_order': False, 'shape': shape}
        )
        file.truncate(file.tell() + 4 * int(np.prod(shape)))
    together('x_adv')
    return np.lib.format.open_memmap(path, 'r+')

  def save(self, host: dict[str, np.ndarray], device: PyTree):
    """Keeps the state of the hosts, the same on each, and of the devices."""
    if self._folder is None:
      return
    number, first = self._number + 1, jax.process_index() == 0
    with replacing(self._part(number)) as draft, draft.open('wb') as file:
      np.savez(file, **_shards(device))
    if first:
      with replacing(self._host(number)) as draft, draft.open('wb') as file:
        np.savez(file, **host)
    together(f'snapshot {number}')
    if first:
      state = {'number': number, 'layout': self._layout}
      write_json(self._folder / _STATE, state)
    together(f'snapshot {number} counts')
    self._part(self._number).unlink(missing_ok=True)
    if first:
      self._host(self._number).unlink(missing_ok=True)
    self._number = number

  def load(self) -> dict[str, np.ndarray] | None:
    """What `save` was given for the hosts; None if nothing was saved."""
    found = self._read() if self._folder else None
    if not found:
      return None
    self._number = found['number']
    with np.load(self._host(self._number)) as file:
      return dict(file)

  def same_layout(self) -> bool:
    """Whether these processes, devices and slots are those that saved it."""
    return self._read()['layout'] == self._layout

  def device(self, like: PyTree) -> PyTree:
    """What `save` was given for the devices.

    Args:
      like: arrays of the same shapes and places.
    """
    with np.load(self._part(self._number)) as file:
      parts = dict(file)
    leaves, structure = jax.tree.flatten(like)
    made = [
      jax.make_array_from_callback(
        leaf.shape, leaf.sharding, _reader(parts, number)
      )
      for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, made)

  def _read(self):
    path = self._folder / _STATE
    return json.loads(path.read_text()) if path.exists() else None

  def _host(self, number):
    return self._folder / f'host-{number}.npz'

  def _part(self, number):
    return self._folder / f'slots-{number}-{jax.process_index()}.npz'


def _shards(tree: PyTree) -> dict[str, np.ndarray]:
  return {
    _name(number, shard.index): np.asarray(shard.data)
    for number, leaf in enumerate(jax.tree.leaves(tree))
    for shard in leaf.addressable_shards
  }


def _reader(parts: dict[str, np.ndarray], number: int) -> Callable:
  return lambda index: parts[_name(number, index)]


def _name(number: int, index: tuple[slice, ...]) -> str:
  return f'{number} {[(part.start, part.stop) for part in index]}'
