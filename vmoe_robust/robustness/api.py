"""`robust_accuracy`: accuracy under attack of any function, in five lines."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from vmoe_robust.attacks import Budget, Ensemble, ensemble, label
from vmoe_robust.config import UserError, eps_name
from vmoe_robust.config.limits import MOST_COUNT
from vmoe_robust.data import nearly_black
from vmoe_robust.files import local_path, locked
from vmoe_robust.mesh import batch_shards
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.progress import Stages
from vmoe_robust.report.results import RESULTS, read_results, revision
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.report.writing import assemble, write
from vmoe_robust.robustness import arguments, same, sweep
from vmoe_robust.robustness.findings import Asked, findings
from vmoe_robust.robustness.foreign import Model, of_model
from vmoe_robust.robustness.images import InMemory, read
from vmoe_robust.robustness.measure import Arrays
from vmoe_robust.robustness.programs import Programs
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.robustness.target import Target

_X_ADV = 'x_adv'


@dataclasses.dataclass(frozen=True)
class Result:
  """What an attack found; the numbers are those of `x_adv`, judged again.

  Args:
    accuracy: under attack, the worst case of all attacks: `robust.mean()`.
    clean_accuracy: without attack.
    robust: which images are still right.
    x_adv: the attacked images, pixels in [0, 1].
    prediction: classes of x_adv, -1 where a logit is not finite.
    per_attack: accuracy after each attack; the last one is `accuracy`.
    seconds: that each attack took.
    warnings: what makes the numbers hard to believe.
    settings: what was asked; `attack` names what ran.
    findings: the same numbers with intervals, and the records.
    fingerprint: of images and labels: whether two results are of the same.
  """

  accuracy: float
  clean_accuracy: float
  robust: Bool[np.ndarray, 'examples']
  x_adv: Float[np.ndarray, 'examples height width channels']
  prediction: Int[np.ndarray, 'examples']
  per_attack: dict[str, float]
  seconds: dict[str, float]
  warnings: list[str]
  settings: dict[str, object]
  findings: Findings = dataclasses.field(repr=False)
  fingerprint: str

  def save(self, path: str | os.PathLike) -> None:
    """Writes a folder that `vmoe_robust.read_results` reads, and x_adv.

    Args:
      path: of the folder, made if it is not there: `results.json` and
        `records.parquet` of docs/results-format.md, figures, and `x_adv.npy`.
        What an earlier call wrote there is replaced.

    Raises:
      UserError: the folder has the results of a run of a config.
      OSError: it cannot be written.
    """
    folder = local_path(path, 'path')
    _require_no_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = assemble(
      self.findings,
      asked={
        'mode': 'attack',
        'name': self.settings['attack'],
        'experts': None,
        'settings': self.settings,
        'seed': self.settings['seed'],
        'config': None,
      },
      weights=dict.fromkeys(
        ('checkpoint', 'step', 'checksum', 'parameters', 'flops_per_image')
      ),
      data={'name': 'arrays', 'split': '', 'fingerprint': self.fingerprint},
    )
    write(folder, results, self.findings, {_X_ADV: self.x_adv})


def robust_accuracy(
  model: Model,
  images: np.ndarray,
  labels: Sequence[int] | np.ndarray,
  *,
  attack: str | Sequence[str] = 'autoattack',
  norm: str | float = 'Linf',
  eps: float | None = None,
  seed: int = 0,
  iterations: int = 100,
  queries: int = 5000,
  restarts: int = 0,
  targets: int = 0,
  batch_size: int = 256,
  attack_through: Model | None = None,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> Result:
  """Accuracy under attack of any classifier.

  Args:
    model: a function from images in [0, 1], float32 [batch, height, width,
      channels], to logits [batch, classes]; a pair `(function, weights)` whose
      function is called with the weights and the images; or what `load`
      returned. A random model takes an argument `key` besides, and is judged by
      its mean. A function that JAX cannot differentiate or trace, of NumPy
      arrays for example, can be attacked by 'square'.
    images: uint8, or floats in [0, 1].
    labels: classes, one an image.
    attack: 'autoattack', another name of `attacks.ensembles.names()`, or a
      list of attacks.
    norm: 'Linf', 'L2' or 'L1'; also np.inf, 2 and 1.
    eps: radius, in units of pixels in [0, 1]; in Linf 8/255 if there is none.
    seed: of all that is drawn.
    iterations: of APGD, FAB and PGD.
    queries: of Square.
    restarts: of attacks without targets; 0: as many as the ensemble has.
    targets: classes that targeted attacks try; 0: as many as the ensemble has,
      nine at most.
    batch_size: images attacked at once, on all devices.
    attack_through: a twin of a function, cheaper or smoother, that is attacked
      in its place, a function or a pair as `model` is; `model` judges.
    folder: what is left there when the attack is cut short; the same call goes
      on from it. What comes from there is judged again by `model`.
    progress: show how far it is.

  Raises:
    UserError: arguments that make no sense, a model that cannot be attacked so,
      or one whose images change each other's predictions.
  """
  images, labels = arguments.images_and_labels(images, labels)
  for text in (told := nearly_black(images)):
    logging.warning('%s', text)  # now, for an attack may take hours
  names = arguments.attack(attack)
  norm, eps = arguments.ball(norm, eps)
  counts = dict(iterations=iterations, queries=queries, batch_size=batch_size)
  arguments.whole(1, MOST_COUNT, **counts)
  arguments.whole(0, MOST_COUNT, restarts=restarts, targets=targets)
  arguments.whole(0, 2**32 - 1, seed=seed)
  target = of_model(model, attack_through, images.shape[1:])
  arguments.classes(labels, target.classes)
  targets = min(targets, target.classes - 1)
  budget = Budget(iterations, queries, restarts, targets)
  chosen = ensemble(names, norm, target.classes, budget)
  _require_gradient(target, chosen)
  shards = batch_shards(target.mesh)
  programs = Programs(
    target,
    chosen,
    norm=norm,
    seed=seed,
    batch_size=-(-min(batch_size, len(images)) // shards) * shards,
  )
  settings = dict(
    attack=label(names, norm, budget), norm=norm, eps=eps, seed=seed
  )
  settings |= dataclasses.asdict(budget)
  settings |= dict(examples=len(images), jax=jax.__version__)
  revision()  # of the code that runs
  rows = Arrays(images, labels)
  digests = same.digests(rows)
  with contextlib.ExitStack() as stack:
    stages = Stages(len(images))
    stack.callback(stages.close)
    if folder is not None:
      folder = arguments.folder(folder)
      stack.enter_context(locked(folder, 'folder'))
      settings_there = settings | digests | same.identity(programs, rows, eps)
    unfinished = Unfinished(folder, settings_there if folder else {})
    keeper = None if folder else InMemory(rows.floats())
    found = sweep.run(
      programs,
      rows,
      (eps,),
      unfinished=unfinished,
      keeper=None if keeper is None else (lambda _: keeper),
      archive=folder and folder / _X_ADV,
      on_turn=stages.update if progress else lambda *_: None,
    )
  found.warnings[:0] = told
  if keeper is not None:
    x_adv = keeper.x_adv
  else:
    x_adv = _archived(folder, eps, found, images)
    same.require_same_verdict(programs, rows, x_adv, found.columns, folder)
  return _result(found, x_adv, settings, '-'.join(digests.values()))


def _result(found: sweep.Swept, x_adv, settings, fingerprint: str) -> Result:
  (fall,), columns = found.falls.values(), found.columns
  robust = is_right(columns['prediction_after'], columns['label'])
  clean = is_right(columns['prediction_before'], columns['label'])
  return Result(
    accuracy=float(robust.mean()),
    clean_accuracy=float(clean.mean()),
    robust=robust,
    x_adv=x_adv,
    prediction=columns['prediction_after'],
    per_attack=fall.robust_after,
    seconds=fall.seconds,
    warnings=found.warnings,
    settings=settings,
    findings=findings(
      found, Asked(settings['attack'], settings['norm'], (settings['eps'],))
    ),
    fingerprint=fingerprint,
  )


def _archived(folder, eps, found, images) -> np.ndarray:
  columns, place = found.columns, folder / _X_ADV / eps_name(eps)
  process, row = columns['x_adv_process'], columns['x_adv_row']
  return read(place, process, row, images.shape[1:])


def _require_gradient(target: Target, chosen: Ensemble):
  blind = [s.name for s in chosen.stages if s.needs_gradient]
  if blind and not target.differentiable:
    said = str(target.why).strip().split('\n')[0]
    raise UserError(
      f'the model has no gradient by the image, which {blind[0]} follows: JAX '
      f'says {type(target.why).__name__}: {said}. Mend that, use '
      "attack='square', or give the function a gradient with jax.custom_vjp, "
      'as docs/attacks.md does for a PyTorch model'
    ) from target.why


def _require_no_run(folder: pathlib.Path):
  """Refuses a folder whose results are of `vmoe_robust.main`."""
  if not (folder / RESULTS).exists():
    return
  try:
    is_run = read_results(folder)['asked'].get('config') is not None
  except UserError:  # damaged, or a beginning
    is_run = True
  if is_run:
    raise UserError(
      f'path={folder} has {RESULTS} of another run; choose another folder'
    )
