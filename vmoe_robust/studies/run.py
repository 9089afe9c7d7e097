"""`config.mode = 'study'`: asks questions of a saved checkpoint."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights
from vmoe_robust.config import (
  UserError,
  attacks,
  choose,
  default,
  differences,
  flatten,
  needs_checkpoint,
  studies,
  validate,
)
from vmoe_robust.config.studies import OF_FIRST
from vmoe_robust.evaluate import job
from vmoe_robust.evaluate.classifier import Classifier, origin, restore
from vmoe_robust.report.terminal import say
from vmoe_robust.studies import STUDIES, questions, transfer


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Runs studies, writes and prints what they found.

  With `config.study.names` each has a folder of its own, and one that does not
  fit the checkpoint does not stop the others. They share what is read of it,
  and the x_adv that several of them look at are made once.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  if not config.study.names:
    name = choose('config.study.name', config.study.name, STUDIES)
    study = STUDIES[name]
    config = _settled(config)
    return job.judge(config, workdir, study.run, study.render, restore)
  validate(config, jax.device_count())
  each = {name: _alone(config, name) for name in config.study.names}
  _refuse_what_none_uses(config, each)
  if failed := _several(each, pathlib.Path(workdir)):
    raise UserError(
      f'of config.study.names={config.study.names!r} these were not answered: '
      f'{", ".join(failed)}; the first because {next(iter(failed.values()))}'
    )


def _several(
  each: dict[str, ConfigDict], workdir: pathlib.Path
) -> dict[str, UserError]:
  """Runs studies, and returns why some of them were not answered.

  Those with questions about the same x_adv wait for each other, and are asked
  together at the end.
  """
  shared, failed, waiting = _Shared(), {}, {}
  with contextlib.ExitStack() as stack:
    for name, own in each.items():
      with _noted(name, failed):
        asked = _asked(name, own, workdir / name, shared, stack)
        waiting |= {name: asked} if asked else {}
    for names in questions.groups(waiting):
      group = [waiting[name] for name in names]
      with _noted(', '.join(names), failed):
        for name, found in zip(names, questions.answers(group), strict=True):
          with _noted(name, failed):
            if isinstance(found, UserError):
              raise found
            job.conclude(waiting[name].job, found, STUDIES[name].render)
            say('')
  return failed


def _asked(
  name: str,
  config: ConfigDict,
  workdir: pathlib.Path,
  shared: '_Shared',
  stack: contextlib.ExitStack,
) -> questions.Question | None:
  """What a study asks, its job open until the stack is left.

  None: it is answered.
  """
  study = STUDIES[name]
  with contextlib.ExitStack() as own:
    opened = job.open_job(_settled(config), workdir, study.render, shared)
    opened = own.enter_context(opened)
    if opened is not None and hasattr(study, 'ask'):
      question = study.ask(opened)
      stack.push(own.pop_all())
      return question
    if opened is not None:
      job.conclude(opened, study.run(opened), study.render)
    say('')
  return None


@contextlib.contextmanager
def _noted(name: str, failed: dict[str, UserError]) -> Iterator[None]:
  """What does not fit is said and kept, and the rest goes on."""
  try:
    yield
  except UserError as error:
    say(f'{name}: {error}\n')
    failed[name] = error


def _settled(config: ConfigDict) -> ConfigDict:
  """The configuration, with what a study finds out before its job is open."""
  return transfer.settled(config) if config.study.name == 'transfer' else config


def _alone(config: ConfigDict, name: str) -> ConfigDict:
  """What asks for one of several studies, with the fields that it uses."""
  out, plain = config.copy_and_resolve_references(), default()
  out.study.name, out.study.names = name, ()
  for other in studies(out.study):
    if other != name:
      out.study[other] = plain.study[other]
  if not attacks(out):
    out.attack = plain.attack
  elif name != 'routing_attacks' and 'routing_attacks' in config.study.names:
    for field in OF_FIRST:  # which that study reads
      out.attack[field] = plain.attack[field]
  if name == 'norm_union':  # has radii and norms of its own
    out.attack.eps, out.attack.norm = plain.attack.eps, plain.attack.norm
  if not needs_checkpoint(out):
    out.checkpoint, out.data = plain.checkpoint, plain.data
    out.num_selected = plain.num_selected
  return out


def _refuse_what_none_uses(config: ConfigDict, each: dict[str, ConfigDict]):
  used = [f'config.study.{name}.' for name in each]
  attacking = {name for name, one in each.items() if attacks(one)}
  if attacking - {'norm_union'}:
    used.append('config.attack.')
  elif attacking:  # has radii and norms of its own
    own = ('config.attack.eps', 'config.attack.norm')
    fields = flatten(config.attack, 'config.attack')
    used += [name for name in fields if name not in own]
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
