"""Whether a work directory has the very results that are asked for."""

import os
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from vmoe_robust import staging
from vmoe_robust.config import (
  UserError,
  differences,
  from_json,
  machine_fields,
  unread,
)
from vmoe_robust.files import to_json
from vmoe_robust.report.closing import Render, closing
from vmoe_robust.report.results import RESULTS, read_results
from vmoe_robust.report.terminal import say

# What results call the held-out part of a split: its name, and this.
VALIDATION = ' (validation)'


def finished(
  config: ConfigDict,
  workdir: str | os.PathLike,
  render: Render,
  step: int | None,
  checksum: str | None = None,
  examples: Callable[[], str | None] = lambda: None,
) -> bool:
  """Whether a work directory has these very results; if so, shows them.

  Args:
    config: that the results are to be of.
    workdir: where they would be.
    render: see `Render`.
    step: of the weights that are judged, if they are of a run.
    checksum: of these weights; None: not compared.
    examples: finds the fingerprint of the examples, or None where they are not
      to be compared. It is called where there are results that fit.

  Raises:
    UserError: it has other results.
  """
  if not (Path(workdir) / RESULTS).exists():
    return False
  results = read_results(workdir)
  before, training = results['weights']['step'], config.mode == 'train'
  earlier = before is not None and before < step
  if training and (earlier or _of_validation(results)):
    return False  # of an attack while training
  changed = changes(config, results, step, checksum, examples=examples)
  called = staging.name(workdir)
  if changed:
    way = (
      'attack with --config=configs/attack_pgd.py and' if training else 'use'
    )
    raise UserError(
      f'--workdir={called} has other results: {"; ".join(changed[:3])}; '
      f'{way} another --workdir'
    )
  say(f'{called} is finished:\n\n{closing(results, workdir, render)}')
  return True


def ends_training(results: dict, step: int) -> bool:
  """Whether results are of the attack that ends a training of so many steps.

  One that selects checkpoints may have that step too, on the held-out part.
  """
  return results['weights']['step'] == step and not _of_validation(results)


def changes(
  config: ConfigDict,
  results: dict,
  step: int | None,
  checksum: str | None = None,
  ignore: tuple[str, ...] = (),
  examples: Callable[[], str | None] = lambda: None,
) -> list[str]:
  """In what results differ from those that are asked for, as text.

  Args:
    config: that they are to be of.
    results: that are there.
    step: of the weights that are judged, if they are of a run.
    checksum: of these weights; None: not compared.
    ignore: fields that may differ, besides those of the machine and those that
      are not read.
    examples: as of `finished`; called where nothing else differs.
  """
  weights = results['weights']
  found = from_json(to_json(results['asked']['config']))
  machine = machine_fields(config.data.name)
  changed = differences(config, found, (*machine, *unread(config), *ignore))
  if weights['step'] != step:
    changed.append(f'step {step} (was {weights["step"]})')
  elif checksum not in (None, weights['checksum']):
    changed.append('weights that changed since')
  if not changed and _other_examples(results, examples()):
    changed.append(f'examples of {config.data.name!r} that changed since')
  return changed


def _of_validation(results: dict) -> bool:
  return results['data']['split'].endswith(VALIDATION)


def _other_examples(results: dict, examples: str | None) -> bool:
  before = results['data'].get('fingerprint')  # no older version has it
  return None not in (before, examples) and before != examples
