"""Weights of this project and of others as one thing: arrays by name."""

import os
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from vmoe_robust import files
from vmoe_robust.checkpoint.files import file_system
from vmoe_robust.checkpoint.npz import NpzWeights
from vmoe_robust.checkpoint.official import OfficialWeights
from vmoe_robust.checkpoint.own import RunWeights
from vmoe_robust.checkpoint.safe_tensors import SafeTensorsWeights
from vmoe_robust.config import ConfigDict, UserError


@runtime_checkable
class Weights(Protocol):
  """Named arrays that are read when they are asked for.

  Opening them reads names, shapes and types alone, so that a model can be
  checked against them, and placed on its devices piece by piece, without all
  of them ever being in the memory of one host.
  """

  where: str  # as the user named it, for messages and reports
  # By this project's names, such as 'Encoder/encoderblock_0/Mlp/Dense_0/bias'.
  shapes: dict[str, jax.ShapeDtypeStruct]
  # The names that differ in the file: the name here, the name there.
  renamed: dict[str, str]
  # Of the run that made them; None where the file does not say.
  config: ConfigDict | None
  # What the logits stand for, in their order; empty where nothing says so.
  class_names: tuple[str, ...]
  step: int | None  # of the run; None where the file does not say

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or the part of it that `index` (without steps) selects.

    Raises:
      UserError: the data are damaged.
    """

  def stamp(self) -> str | None:
    """By which these weights are known again, without reading all of them."""

  def close(self) -> None:
    """Lets go of the files."""


def open_weights(
  path: str | os.PathLike,
  *,
  step: int | None = None,
  field: str = 'config.init_from',
) -> Weights:
  """Opens weights, whoever made them.

  Args:
    path: a work directory (its newest whole checkpoint), one of its
      checkpoints (`WORKDIR/checkpoints/STEP` or `best`), a `.safetensors` that
      was exported, a released ViT `.npz`, or the prefix of an official V-MoE
      checkpoint. The last two may be in the cloud (`gs://`).
    step: another checkpoint of a work directory than the newest.
    field: what the user set, for the errors.

  Raises:
    UserError: there are no weights, or they are damaged.
  """
  if not os.fspath(path):
    raise UserError(f"{field}='' names nothing; give the workdir of a run")
  where = files.expanded(path, field)
  system, place = file_system(where, field)
  try:
    with files.said_once():
      is_official, is_folder = (
        system.exists(place + '.index'),
        system.isdir(place),
      )
  except OSError as error:
    raise UserError(
      f'{field}={where!r} cannot be reached: {error}; give a path, or an '
      'address that these credentials may read'
    ) from error
  if where.endswith('.npz'):
    kind = NpzWeights
  elif where.endswith('.safetensors'):
    kind = SafeTensorsWeights
  elif is_official:
    kind = OfficialWeights
  elif is_folder or '/checkpoints/' in place:
    return RunWeights(where, step, field)
  else:
    raise UserError(
      f'{field}={where!r} is no directory, and there is no {where}.index; give '
      'the workdir of a run, WORKDIR/checkpoints/STEP, the PREFIX of the files '
      'PREFIX.index and PREFIX.data-* of V-MoE, a .npz or a .safetensors file'
    )
  if step is not None:
    raise UserError(
      f'{field}={where!r} has no steps; leave out step={step}, which is for '
      'the work directory of a run'
    )
  return kind(where, field)
