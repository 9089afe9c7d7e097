"""A job: what is judged. It is opened here, and its results written here."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import Weights, open_weights
from vmoe_robust.config import (
  UserError,
  needs_checkpoint,
  shares_slots,
  validate,
)
from vmoe_robust.data import (
  Source,
  describe_skipped,
  open_source,
)
from vmoe_robust.evaluate.cautions import cautions
from vmoe_robust.evaluate.classifier import Classifier, origin, restore
from vmoe_robust.evaluate.combine import combine
from vmoe_robust.evaluate.finished import finished
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.evaluate.target import shares_capacity
from vmoe_robust.files import locked, require_writable
from vmoe_robust.models import flops
from vmoe_robust.report import writing
from vmoe_robust.report.closing import Render, closing
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.terminal import say
from vmoe_robust.robustness.resume import release

# In the work directory, what a run that is cut short leaves.
PROGRESS = 'unfinished'
# Of a study that draws its data.
_OWN_DATA = {'name': 'random', 'split': '', 'fingerprint': None}

Restored = Callable[[Weights, ConfigDict], Classifier]


@dataclasses.dataclass(frozen=True)
class Job:
  """A checkpoint, the examples it is judged on, and where results go."""

  classifier: Classifier | None  # None: of a study that needs no checkpoint
  source: Source | None  # None: of such a study
  config: ConfigDict
  workdir: str | os.PathLike
  warnings: tuple[str, ...] = ()  # that results have, whatever is found


@contextlib.contextmanager
def open_job(
  config: ConfigDict,
  workdir: str | os.PathLike,
  render: Render,
  restored: Restored = restore,
) -> Iterator[Job | None]:
  """What `config` is to judge, or None if that is done and now shown.

  Other runs are kept out of the work directory. Nothing is written for a run
  that is finished, so that its table can be shown from a read-only disk.

  Args:
    config: of a mode; `config.checkpoint` names the model, where the mode
      needs one.
    workdir: where the results go.
    render: see `Render`.
    restored: reads the weights.

  Raises:
    UserError: the checkpoint, the data, the configuration or the results that
      are in the work directory do not fit.
  """
  with contextlib.ExitStack() as stack:
    weights = None
    if needs_checkpoint(config):
      weights = open_weights(config.checkpoint, field='config.checkpoint')
      stack.enter_context(contextlib.closing(weights))
    config = combine(config, weights)
    validate(config, jax.device_count())
    if _is_shown(config, workdir, render, weights):
      yield None
      return
    with locked(workdir):
      require_writable(workdir)
      # Another run may have ended meanwhile.
      if _is_shown(config, workdir, render, weights):
        yield None
        return
      if weights is None:
        yield Job(None, None, config, workdir)
        return
      found = open_source(config.data, config.data.split)
      source = check_fit(config, found, weights.class_names)
      warnings = cautions(config, weights.config, found, source)
      classifier = restored(weights, config)
      yield Job(classifier, source, config, workdir, warnings)


def judge(
  config: ConfigDict,
  workdir: str | os.PathLike,
  run: Callable[[Job], Findings],
  render: Render,
  restored: Restored = restore,
) -> None:
  """Judges `config.checkpoint`, writes the results and prints the table.

  Args:
    config: of a mode.
    workdir: where the results go.
    run: finds the numbers.
    render: see `Render`.
    restored: reads the weights.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  with open_job(config, workdir, render, restored) as job:
    if job is not None:
      conclude(job, run(job), render)


def conclude(job: Job, findings: Findings, render: Render) -> None:
  """Writes the results of a job, forgets its progress and prints the table."""
  results = write(job, findings)
  release(Path(job.workdir, PROGRESS))
  say(closing(results, job.workdir, render))


def write(job: Job, findings: Findings) -> dict:
  """Writes records, figures and, last of all, `results.json`.

  The first process writes; all return the same. A figure that cannot be drawn
  is a warning.

  Args:
    job: what was judged.
    findings: what was found.

  Returns:
    What is in `results.json`.

  Raises:
    OSError: the disk is full, say.
  """
  results = assemble(job, findings)
  if jax.process_index() == 0:
    writing.write(job.workdir, results, findings)
  return results


def _not_finite(findings: Findings) -> list[str]:
  counts = [row.get('not_finite') for row in findings.rows]
  lost = sum(count for count in counts if isinstance(count, int))
  said = f'{lost} predictions are not finite: wrong, and alike where compared'
  return [said] if lost else []


def assemble(job: Job, findings: Findings) -> dict:
  """What `results.json` says, in the form of `results.schema.json`."""
  if job.config.mode == 'study':
    findings = dataclasses.replace(
      findings, warnings=[*findings.warnings, *_not_finite(findings)]
    )
  findings = dataclasses.replace(
    findings, warnings=[*job.warnings, *findings.warnings]
  )
  skipped = sorted(set(findings.skipped))
  data = job.config.data
  about = _OWN_DATA
  if job.source is not None:
    about = {
      'name': data.name,
      'split': data.split,
      'fingerprint': job.source.fingerprint,
    }
  return writing.assemble(
    findings,
    asked=asked(job.config),
    weights=_weights(job),
    data=about,
    skipped=[describe_skipped(job.source, i) for i in skipped],
  )


def _is_shown(config, workdir, render: Render, weights: Weights | None) -> bool:
  if weights is None:
    return finished(config, workdir, render, None)
  _, step, checksum = origin(weights)

  examples = lambda: examples_now(config)
  return finished(config, workdir, render, step, checksum, examples)


def examples_now(config: ConfigDict) -> str | None:
  """The fingerprint of the examples to judge; None where they are no more."""
  try:
    return open_source(config.data, config.data.split).fingerprint
  except UserError:  # results count there too
    return None


def asked(config: ConfigDict) -> dict:
  """What `results.json` says was asked."""
  study = config.mode == 'study'
  settings = config.study[config.study.name] if study else config.attack
  return {
    'mode': config.mode,
    'name': config.study.name if study else config.attack.name,
    'experts': _experts(config),
    'settings': settings.to_dict(),
    'seed': config.seed,
    'config': config.to_dict(),
  }


def _experts(config: ConfigDict) -> str | None:
  if not needs_checkpoint(config):
    return None
  if config.mode != 'study':
    experts = config.attack.experts
    return experts if shares_capacity(config.model, experts) else 'dropless'
  return 'capacity' if shares_slots(config) else 'dropless'


def _weights(job: Job) -> dict:
  if job.classifier is None:
    names = 'checkpoint', 'step', 'checksum', 'parameters', 'flops_per_image'
    return dict.fromkeys(names)
  subject, config = job.classifier, job.config
  leaves = jax.tree.leaves(subject.params)
  return {
    'checkpoint': str(subject.where),
    'step': subject.step,
    'checksum': subject.checksum,
    'parameters': sum(leaf.size for leaf in leaves),
    'flops_per_image': flops.forward(
      config.model, config.data.image_size, config.model.channels
    ),
  }
