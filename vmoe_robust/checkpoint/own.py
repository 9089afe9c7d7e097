"""Weights of a run's checkpoint, an array or a part of one at a time."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from vmoe_robust import files
from vmoe_robust.checkpoint.manager import Checkpoints
from vmoe_robust.checkpoint.trees import flat
from vmoe_robust.checkpoint.workdir import (
  fingerprint,
  locate,
  read_class_names,
  read_config,
)
from vmoe_robust.config import UserError


class RunWeights:
  """The weights that a run would be evaluated with.

  They are read by TensorStore alone. Orbax, through which they were written,
  makes the processes of a pod wait for each other at every read; here each
  reads what its own devices hold.
  """

  renamed: dict[str, str] = {}

  def __init__(self, where: str, step: int | None, field: str):
    self.where = where
    path = files.path(where, field)
    if step is not None:
      path = path / 'checkpoints' / str(step)
    self.workdir, self.step = locate(path, field)
    self.config = read_config(self.workdir)
    self.class_names = read_class_names(self.workdir)
    checkpoints = Checkpoints(self.workdir)
    self._folder = checkpoints.path(self.step) / checkpoints.weights(self.step)
    checkpoints.close()
    metadata = ocp.StandardCheckpointHandler().metadata(self._folder)
    self._driver = 'zarr3' if metadata.use_zarr3 else 'zarr'
    self.shapes, self._keys = {}, {}
    for name, leaf in flat(metadata.tree).items():
      self.shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      self._keys[name] = leaf.name

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it.

    Raises:
      UserError: the checkpoint has been damaged or removed meanwhile.
    """
    base = f'{self._folder}/'
    if not files.is_address(base):
      base = dict(driver='file', path=base)
    store = dict(driver='ocdbt', base=base, path=f'{self._keys[name]}/')
    spec = dict(driver=self._driver, kvstore=store)
    try:
      array = tensorstore.open(spec, open=True, read=True).result()
      return np.asarray(array[index or ...].read().result())
    except (OSError, ValueError) as error:
      raise UserError(
        f'{name} cannot be read in {self._folder}: {error}; `python -m '
        f'vmoe_robust.checkpoint verify {self.workdir}` says what is good'
      ) from error

  def stamp(self) -> str | None:
    """Of the weights that it was sealed with; None if it is gone."""
    return fingerprint(self.workdir, self.step)

  def close(self) -> None:
    """There is nothing to let go of."""
