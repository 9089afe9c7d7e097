"""The model card of exported weights: what they are, and what runs measured."""

import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from vmoe_robust import files
from vmoe_robust.checkpoint import RunWeights, Weights
from vmoe_robust.config import UserError, moe_blocks
from vmoe_robust.evaluate.classifier import origin, recognised
from vmoe_robust.files import replacing
from vmoe_robust.models import flops
from vmoe_robust.report.card import About, card
from vmoe_robust.report.page.runs import Problems, Run, find
from vmoe_robust.report.page.verdict import experts_of
from vmoe_robust.report.results import RESULTS
from vmoe_robust.report.table import percent, radius

# Where runs leave results of a work directory: its own, and those of attacks
# and studies beside its checkpoints, as an experiment lays them.
_RESULTS = (RESULTS, f'*/{RESULTS}', f'*/*/{RESULTS}')


def require_results(folders: Sequence[str]) -> None:
  """Refuses folders of runs in which there is no run.

  Raises:
    UserError: names the first, and what is wrong.
  """
  for folder in folders:
    problems = Problems()
    if not find([folder], problems):
      raise UserError(f'--results: {"; ".join(problems.lines)}')


def card_path(out: str | pathlib.Path, overwrite: bool) -> pathlib.Path:
  """Where the card of exported weights goes: the same name, ending in .md.

  Raises:
    UserError: there is a file already.
  """
  weights = pathlib.Path(files.path(out, 'out'))
  path = weights.with_suffix('.md')
  # Weights have another ending: `export` refuses this one.
  if path != weights and path.exists() and not overwrite:
    raise UserError(
      f'{path}, the model card, exists; choose another name, or add --overwrite'
    )
  return path


def write_card(
  weights: Weights,
  out: str | pathlib.Path,
  *,
  results: Sequence[str] = (),
  license: str = '',
) -> list[str]:
  """Writes the card beside exported weights.

  Args:
    weights: that were exported.
    out: the file that has them.
    results: folders of runs, or of many, besides those of the work directory.
    license: as the hub names it; left out of the card if empty.

  Returns:
    A line for each run that could not be used.
  """
  problems, out = Problems(), pathlib.Path(files.path(out, 'out'))
  _, step, checksum = origin(weights)
  runs = [
    run
    for run in find([*_beside(weights), *results], problems)
    if problems.guard(
      run.name, functools.partial(_is_used, run, step, checksum, problems)
    )
  ]
  text = card(_about(weights, out, checksum), runs, problems, license)
  with replacing(out.with_suffix('.md')) as draft:
    draft.write_text(text, encoding='utf-8')
  return problems.lines


def _beside(weights: Weights) -> list[epath.Path]:
  if not isinstance(weights, RunWeights):
    return []
  folder = files.path(weights.workdir, 'path')
  return [path for one in _RESULTS for path in sorted(folder.glob(one))]


def _is_used(run: Run, step, checksum, problems: Problems) -> bool:
  """Whether it attacked these weights; a line if it attacked others."""
  of = run.results['weights']
  if not run.is_attack:
    return False
  if of['checksum'] is not None and of['checksum'] == checksum:
    return True
  problems.add(
    f'{run.name} judged other weights (step {of["step"]}, checksum '
    f'{of["checksum"]}) than these (step {step}, checksum {checksum})'
  )
  return False


def _about(weights: Weights, out: pathlib.Path, checksum: str | None) -> About:
  config = weights.config or recognised(weights)
  model, size = config.model, config.data.image_size
  sparse = bool(moe_blocks(model))
  shape = f'{size} x {size} x {model.channels}'
  kind = 'dense Vision Transformer'
  if sparse:
    kind = 'V-MoE, a sparse Mixture-of-Experts Vision Transformer,'
  of = f' trained on {config.data.name}' if config.data.name else ''
  # A card is sent around, so that it has no paths of this machine.
  base = lambda path: os.fspath(path).rstrip('/').rsplit('/', 1)[-1]
  sums = [(f'SHA-256 of {out.name}', _sha256(out))]
  if isinstance(weights, RunWeights):
    sums.append(('the checkpoint that results name', str(checksum)))
    made = base(weights.workdir)
  else:
    made = base(weights.where)
  if weights.step is not None:
    made += f', step {weights.step}'
  sums.append(('exported from', made))
  return About(
    out.stem,
    f'A {kind}{of}: images of {shape} pixels into {model.num_classes} classes.',
    sparse,
    config.data.name,
    _model(weights, config),
    _training(weights),
    out.name,
    f'[batch, {size}, {size}, {model.channels}], uint8 or floats in [0, 1]',
    sums,
  )


def _model(weights: Weights, config: ConfigDict) -> list[tuple[str, str]]:
  model, size = config.model, config.data.image_size
  count = sum(math.prod(leaf.shape) for leaf in weights.shapes.values())
  found = [
    (
      'architecture',
      f'{model.layers} blocks, {model.hidden} wide, {model.heads} heads, MLP '
      f'of {model.mlp}, patches of {model.patch} x {model.patch}, {model.stem} '
      f'stem, {model.positions} positions, {model.head} head',
    ),
    ('experts', _experts(weights, model)),
    ('parameters', f'{count:,}'),
    (
      'forward pass of an image',
      f'{flops.forward(model, size, model.channels):,.0f} FLOPs, by formula',
    ),
    (
      'pixels',
      f'in [0, 1], {size} x {size}, {model.channels} channels; the model '
      f'itself takes (x - {_numbers(model.mean)}) / {_numbers(model.std)}',
    ),
  ]
  if weights.class_names:
    names = ', '.join(weights.class_names[:20])
    more = len(weights.class_names) - 20
    found.append(('classes', names + (f' and {more} more' if more > 0 else '')))
  return found


def _experts(weights: Weights, model: ConfigDict) -> str:
  blocks = moe_blocks(model)
  if not blocks:
    return 'none, the model is dense'
  router = model.router
  each = experts_of(router, router.selected)
  if weights.config is None:
    each += ' unless `load` is told otherwise, which is not recorded'
  shared = f', {model.shared_experts} shared' if model.shared_experts else ''
  return (
    f'{model.experts} in each of the sparse blocks '
    f'{", ".join(map(str, blocks))}, {each}{shared}; router {router.name}'
  )


def _training(weights: Weights) -> list[tuple[str, str]]:
  config = weights.config
  if config is None:
    return []
  data, train, objective = config.data, config.train, config.train.objective
  goal = f'{objective.name}, {train.loss} loss'
  if train.label_smoothing:
    goal += f', labels smoothed by {train.label_smoothing:.4g}'
  if objective.name in ('trades', 'mart', 'advmoe'):
    goal += f', beta {objective.beta:.4g}'
  if objective.name != 'natural':
    steps = 1 if objective.name in ('fast', 'nfgsm') else objective.steps
    ball = f'{objective.norm}, radius {radius(objective.norm, objective.eps)}'
    goal += f'; x_adv of {steps} steps in {ball}'
  images = f'{data.image_size} pixels a side'
  if data.resize:
    images += f' from the centre of images resized to {data.resize}'
  more = [f'crop {data.crop}'] if data.crop != 'none' else []
  more += ['mirrored'] if data.flip else []
  if data.randaugment_layers:
    size = f'{data.randaugment_layers} x {data.randaugment_magnitude}'
    more.append(f'RandAugment {size}')
  more += [f'mixup {data.mixup:.4g}'] if data.mixup else []
  optimizer, held_out = train.optimizer, ''
  if data.validation:
    held_out = f', of which {percent(data.validation)} were held out'
  steps = f'{train.steps:,}'
  if weights.step not in (None, train.steps):
    steps = f'{weights.step:,} of {steps}'
  return [
    ('data', f'{data.name} {data.split}{held_out}'),
    ('evaluation sees', images),
    ('augmentation', ', '.join(more) or 'none'),
    ('objective', goal),
    (
      'length',
      f'{steps} steps of {train.batch_size:,} images, '
      f'{optimizer.name}, learning rate {optimizer.learning_rate:.4g} '
      f'({optimizer.schedule}), weight decay {optimizer.weight_decay:.4g}',
    ),
    ('weights', f'averaged, decay {train.ema}' if train.ema else 'the last'),
    ('started from', config.init_from or 'random weights'),
    ('seed', str(config.seed)),
  ]


def _numbers(found: Sequence[float]) -> str:
  text = ', '.join(f'{x:.4g}' for x in found)
  return text if len(found) == 1 else f'({text})'


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
