"""`config.mode = 'study'`: asks questions of a saved checkpoint."""

import dataclasses
import os
import pathlib

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights
from vmoe_robust.config import (
  UserError,
  attacks,
  choose,
  default,
  differences,
  needs_checkpoint,
  studies,
  validate,
)
from vmoe_robust.evaluate import job
from vmoe_robust.evaluate.classifier import Classifier, origin, restore
from vmoe_robust.report.terminal import say
from vmoe_robust.studies import STUDIES, transfer


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Runs studies, writes and prints what they found.

  With `config.study.names` each has a folder of its own, and one that does not
  fit the checkpoint does not stop the others. They share what is read of it.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  if not config.study.names:
    return _run(config, workdir, restore)
  validate(config, jax.device_count())
  each = {name: _alone(config, name) for name in config.study.names}
  _refuse_what_none_uses(config, each)
  shared, failed = _Shared(), {}
  for name, own in each.items():
    try:
      _run(own, pathlib.Path(workdir) / name, shared)
    except UserError as error:
      say(f'{name}: {error}')
      failed[name] = error
    say('')
  if failed:
    raise UserError(
      f'of config.study.names={config.study.names!r} these were not answered: '
      f'{", ".join(failed)}; the first because {next(iter(failed.values()))}'
    )


def _run(config, workdir, restored: job.Restored):
  if config.study.name == 'transfer':
    config = transfer.settled(config)
  study = STUDIES[choose('config.study.name', config.study.name, STUDIES)]
  job.judge(config, workdir, study.run, study.render, restored)


def _alone(config: ConfigDict, name: str) -> ConfigDict:
  """What asks for one of several studies, with the fields that it uses."""
  out, plain = config.copy_and_resolve_references(), default()
  out.study.name, out.study.names = name, ()
  for other in studies(out.study):
    if other != name:
      out.study[other] = plain.study[other]
  if not attacks(out):
    out.attack = plain.attack
  if name == 'norm_union':  # has radii and norms of its own
    out.attack.eps, out.attack.norm = plain.attack.eps, plain.attack.norm
  if not needs_checkpoint(out):
    out.checkpoint, out.data = plain.checkpoint, plain.data
    out.num_selected = plain.num_selected
  return out


def _refuse_what_none_uses(config: ConfigDict, each: dict[str, ConfigDict]):
  used = [f'config.study.{name}.' for name in each]
  if any(map(attacks, each.values())):
    used.append('config.attack.')
  groups = [f'config.study.{name}.' for name in studies(config.study)]
  for field in differences(config, default(), tuple(used)):
    if field.startswith(('config.attack.', *groups)):
      raise UserError(
        f'{field.split(" ")[0]} has no effect with config.study.names='
        f'{config.study.names!r}; leave it out'
      )


class _Shared:
  """Weights that were read, for the next study that wants the same."""

  def __init__(self):
    self._key: str | None = None
    self._classifier: Classifier | None = None

  def __call__(self, weights: Weights, config: ConfigDict) -> Classifier:
    parts = (config.model, config.mesh, config.num_selected)
    key = '\n'.join([*map(repr, parts), repr(origin(weights))])
    if key != self._key:
      self._classifier = None  # before the next one takes its room
      self._classifier, self._key = restore(weights, config), key
    return dataclasses.replace(self._classifier, config=config)
