"""`config.study.name = 'transfer'`: does an attack on one model break another?

x_adv of each checkpoint is shown to every checkpoint, dense ones too. In the
diagonal each model is shown its own x_adv.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config import UserError, eps_name, moe_blocks, validate_mesh
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.cautions import seen
from vmoe_robust.evaluate.classifier import (
  Classifier,
  origin,
  recognised,
  restore,
  select,
)
from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.figures import Matrix
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import questions

_FIELD = 'config.study.transfer.others'


def run(job: Job) -> Findings:
  """Accuracy of each model on the x_adv of each, all models dropless.

  For M models it takes M forward passes an image, and a radius M x (M + 2 +
  2 x `config.attack.steps`) more (a gradient counts as two).

  Raises:
    UserError: there is no second checkpoint, or one does not fit the first or
      cannot be read.
  """
  return questions.answer(ask(job))


def ask(job: Job) -> questions.Question:
  """What `run` asks of each batch and its x_adv.

  Raises:
    UserError: as `run`.
  """
  models, warnings = [job.classifier], []
  for where in _others(job.config):
    model, told = _opened(where, job)
    models.append(model)
    warnings += [f'{where}: {text}' for text in told]
  return ask_of(job, models, warnings)


def settled(config: ConfigDict) -> ConfigDict:
  """The same with the other checkpoints' steps and checksums.

  So results of other weights are not taken for those that are asked for.

  Raises:
    UserError: there is no second checkpoint, or one cannot be read.
  """
  out, found = config.copy_and_resolve_references(), []
  for where in _others(config):
    with contextlib.closing(open_weights(where, field=_FIELD)) as weights:
      _, step, checksum = origin(weights)
    found.append(f'step {step}, {checksum}')
  out.study.transfer.found = tuple(found)
  return out


def _others(config: ConfigDict) -> tuple[str, ...]:
  others = config.study.transfer.others
  if not others:
    raise UserError(
      f'{_FIELD} names no second checkpoint to transfer to; use a tuple of '
      "work directories, such as ('runs/vit',)"
    )
  return others


def _opened(where: str, job: Job) -> tuple[Classifier, list[str]]:
  """Another checkpoint, on the first one's devices, and what to know of it.

  Raises:
    UserError: it cannot be read, or takes other images or classes.
  """
  weights = open_weights(where, field=_FIELD)
  with contextlib.closing(weights):
    config, first = weights.config or recognised(weights), job.config
    for path in ('data.image_size', 'model.channels', 'model.num_classes'):
      group, name = path.split('.')
      wanted, found = first[group][name], config[group][name]
      if wanted != found:
        raise UserError(
          f'{_FIELD}: {where!r} has config.{path}={found}, and '
          f'config.checkpoint has {wanted}; use models of the same images and '
          'classes'
        )
    warnings = list(seen(first, weights.config, job.source))
    known = weights.class_names and job.source.class_names
    if not known:
      warnings.append(
        'the names of its classes, or those of the data, are not known: '
        'classes are compared by their numbers'
      )
    elif list(weights.class_names) != list(job.source.class_names):
      raise UserError(
        f'{_FIELD}: {where!r} has classes {list(weights.class_names)[:3]} ..., '
        f'and the data {list(job.source.class_names)[:3]} ...; use models of '
        'the same classes in the same order'
      )
    if weights.config is None and _is_bare(first.checkpoint):
      # Weights that tell neither are told the same.
      for name in ('mean', 'std', 'compute_dtype'):
        config.model[name] = first.model[name]
      select(config, first.num_selected, 'config.num_selected')
    mesh = job.classifier.mesh
    config.mesh.update(dict(mesh.shape))
    validate_mesh(config, mesh.size)
    return restore(weights, config, mesh), warnings


def _is_bare(checkpoint: str) -> bool:
  """Whether weights came without a configuration."""
  with contextlib.closing(open_weights(checkpoint)) as weights:
    return weights.config is None


def ask_of(
  job: Job, models: list[Classifier], warnings: Sequence[str] = ()
) -> questions.Question:
  """What `run` asks of models that are open, the job's own first."""
  config, names = job.config, _names(models)
  shown = _conditions(names, config)
  forwards = [adversarial.plain(model.model) for model in models]
  attack, *others = (
    adversarial.attack(forward, _with_loss_of(model, config))
    for forward, model in zip(forwards, models, strict=True)
  )
  radii = jnp.array(config.attack.eps, jnp.float32)

  def program(params, images, batch, x_adv):
    def predictions(x):
      return [
        classes(forward(own, x, batch['mask'], ())[0])
        for forward, own in zip(forwards, params, strict=True)
      ]

    def at_radius(pair):
      eps, x = pair
      found = predictions(x)
      for other, own in zip(others, params[1:], strict=True):
        found += predictions(other(own, images, batch, eps))
      return jnp.stack(found)

    found = jax.lax.map(at_radius, (radii, x_adv)).reshape(-1, len(images))
    clean = jnp.stack(predictions(images))
    return {'prediction_after': jnp.concatenate([clean, found])}

  return questions.Question(
    _together(job, models),
    'transfer',
    shown,
    program,
    partial(_findings, shown, models, config, warnings),
    attack,
    source=job.classifier,
  )


def _with_loss_of(model: Classifier, config: ConfigDict) -> ConfigDict:
  """As `config`, for a model that was trained with a loss of its own."""
  config = config.copy_and_resolve_references()
  config.train.loss = model.config.train.loss
  return config


def _findings(
  shown, models, config, warnings, columns: Columns, skipped
) -> Findings:
  names = _names(models)
  rows = under.rows(columns, shown)
  for row in rows:
    if row['eps'] and row['source'] != row['target']:
      own = _name(row['target'], row['target'], row['eps'], config)
      row['more_than_its_own'] = paired(
        under.right(under.of(columns, row['condition'])),
        under.right(under.of(columns, own)),
      )
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'models': names,
      'checkpoints': [str(model.where) for model in models],
      'steps': [model.step for model in models],
      'checksums': [model.checksum for model in models],
      **_used(models),
    },
    figures=[_figure(rows, names, eps, config) for eps in config.attack.eps],
    warnings=list(warnings),
  )


def _used(models: list[Classifier]) -> dict[str, list]:
  """What else decides the numbers of each model: pixels, experts a token."""
  settings = [model.config.model for model in models]
  return {
    'mean': [str(tuple(one.mean)) for one in settings],
    'std': [str(tuple(one.std)) for one in settings],
    'selected': [
      one.router.selected if moe_blocks(one) else None for one in settings
    ],
  }


def _together(job: Job, models: list[Classifier]) -> Job:
  """The job of all models; unfinished work is known by all their weights."""
  checksums = '+'.join(str(model.checksum) for model in models)
  every = dataclasses.replace(
    job.classifier,
    params=tuple(model.params for model in models),
    checksum=checksums,
  )
  return dataclasses.replace(job, classifier=every)


def _names(models: list[Classifier]) -> list[str]:
  """The last part of each path, numbered where it is not the only one."""
  names = [Path(model.where).name for model in models]
  return [
    name if names.count(name) == 1 else f'{name} #{number}'
    for number, name in enumerate(names, 1)
  ]


def _name(source: str, target: str, eps: float, config: ConfigDict) -> str:
  return f'{source} to {target}, {under.radius(config, eps)}'


def _conditions(names: list[str], config: ConfigDict) -> list[under.Condition]:
  clean = [
    under.Condition(f'clean, {n}', {'eps': 0.0, 'source': '', 'target': n})
    for n in names
  ]
  return clean + [
    under.Condition(
      _name(source, target, eps, config),
      {'eps': eps, 'source': source, 'target': target},
    )
    for eps in config.attack.eps
    for source in names
    for target in names
  ]


def _figure(rows, names, eps, config: ConfigDict) -> Matrix:
  value = {
    (row['source'], row['target']): row['accuracy']['value']
    for row in rows
    if row['eps'] in (0, eps)
  }
  sources = ['', *names]
  title = (
    f'Accuracy under transfer, {under.radius(config, eps)}\n'
    f'{under.attacked_by(config, rows)}'
  )
  return Matrix(
    f'transfer_{eps_name(eps)}',
    title,
    'shown to',
    'x_adv of',
    names,
    ['no attack', *names],
    [[value[source, target] for target in names] for source in sources],
  )


def render(results: dict) -> str:
  """A line a radius and source, a column a target."""
  names, rows = results['summary']['models'], results['rows']
  config, lines = under.config_of(results), {}
  for row in rows:
    at = under.radius(config, row['eps'])
    key = at, row['source'] or 'no attack'
    value, interval = row['accuracy']['value'], row['accuracy']['interval']
    low, high = (100 * bound for bound in interval)
    shown = f'{percent(value)} ({low:.1f} to {high:.1f})'
    lines.setdefault(key, []).append(shown)
  body = [[*key, *values] for key, values in lines.items()]
  return table(['at', 'x_adv of', *names], body)
