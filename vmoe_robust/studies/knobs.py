"""`config.study.name = 'knobs'`: is anything gained by turning them?

At inference, the same weights with another K, with noise of the router's
logits, with fewer experts, and with limited capacity, one knob at a time.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.statistics import SHARE, mean, paired
from vmoe_robust.report.table import percent, table
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices
from vmoe_robust.studies import conditions as under

TRAINED, SELECTED, KEPT = 'as trained', 'selected', 'kept'
NOISE, CAPACITY = 'noise', 'capacity'
_PANELS = {
  SELECTED: 'K',
  KEPT: 'experts kept, most used first',
  NOISE: "noise, times training's",
  CAPACITY: 'capacity factor (depends on the batch)',
}


def run(job: Job) -> Findings:
  """Accuracy, clean and attacked, at each position of each knob.

  Models with another K, fewer experts or noise are attacked themselves. Noise
  is judged by the mean probabilities of `verdict_draws` draws, and its attack
  follows those of `attack_draws` others, the same at each step (expectation
  over transformation, arXiv:1707.07397). Capacity is shown the x_adv of the
  dropless model as trained.

  Of D models without noise an image takes D x (1 + radii x (3 + 2 x
  `config.attack.steps`)) forward passes (a gradient counts as two); each scale
  of noise V + radii x (V + A x (2 + 2 x steps)) for V draws of the verdict and
  A of the attack, and each capacity 1 + radii. There is one pass more. Sparse
  layers of K choices are K times as large.

  Raises:
    UserError: the model is dense or its router is not top_k, it cannot be set
      so, or the attack is of another kind.
  """
  blocks = under.require_experts(job, 'knobs')
  under.require_router(job, 'knobs', ('top_k',))
  config = job.config
  models, radii = _models(job), (0.0, *config.attack.eps)
  shown = [_condition(config, eps, *one) for one in models for eps in radii]
  program = _program(job, blocks, models)
  use = choices.uses(job, blocks)
  given = _settings(models, use, config)
  columns, skipped = under.measured(job, 'knobs', shown, program, given)
  rows = under.rows(columns, shown)
  for row in rows:
    row['one_draw'] = mean(
      under.of(columns, row['condition'])['one_draw'], SHARE
    )
    both = [
      under.right(under.of(columns, name))
      for name in (
        row['condition'],
        _condition(config, row['eps'], TRAINED, None),
      )
    ]
    row['against_as_trained'] = paired(*both)
  settings, router = config.study.knobs, config.model.router
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary={
      'attack': config.attack.name,
      'selected': router.selected,
      'experts': config.model.experts,
      'noise_deviation': router.noise_std / config.model.experts,
      'attack_draws': settings.attack_draws,
      'verdict_draws': settings.verdict_draws,
      'group_images': router.group_images,
    },
    figures=[_figure(rows, config)],
  )


def _models(job: Job) -> list[tuple[str, float | int | None]]:
  """Each knob and its position, the model as trained first."""
  config = job.config
  settings, experts = config.study.knobs, config.model.experts
  path, router = 'config.study.knobs', config.model.router
  for name, what in ((SELECTED, 'K'), (KEPT, 'numbers of experts')):
    values = settings[name]
    choices.check_numbers(f'{path}.{name}', values, 1, experts, what)
  if settings.noise:
    _check_noise(config)
  if settings.capacity:
    under.require_whole_groups(job)
  powers = [2**i for i in range(experts.bit_length())]
  selected = sorted(settings.selected or powers)
  kept = sorted(settings.kept or powers)
  turned = [
    *((SELECTED, k) for k in selected if k != router.selected),
    *((KEPT, n) for n in kept if n != experts),
    *((NOISE, scale) for scale in sorted(settings.noise)),
    *((CAPACITY, factor) for factor in sorted(settings.capacity)),
  ]
  if not turned:
    raise UserError(
      f'{path} turns nothing, for the model has K={router.selected} and '
      f'{experts} experts; give another {path}.selected, .kept, .noise or '
      '.capacity'
    )
  return [(TRAINED, None), *turned]


def _check_noise(config: ConfigDict):
  loss = config.train.loss
  refused = {
    'config.model.router.noise_std=0, of which it is a multiple': (
      not config.model.router.noise_std
    ),
    f'config.train.loss={loss!r}, for its verdict is by mean probabilities of '
    'one class': loss != 'softmax',
  }
  for what, is_so in refused.items():
    if is_so:
      raise UserError(
        f'config.study.knobs.noise={tuple(config.study.knobs.noise)} does not '
        f'fit {what}; use config.study.knobs.noise=()'
      )


def _condition(config, eps, knob, value) -> under.Condition:
  name = knob if value is None else f'{knob} {value:g}'
  about = {
    'eps': eps,
    'knob': knob,
    'position': value,
    'x_adv_of': TRAINED if knob == CAPACITY else 'itself',
    'is_batch_dependent': knob == CAPACITY,
  }
  return under.Condition(f'{name}, {under.radius(config, eps)}', about)


def _settings(models, use, config: ConfigDict) -> tuple[np.ndarray, ...]:
  """What the program is given: experts kept and K of each, and the noises."""
  ranked = np.argsort(np.argsort(-use, axis=1, kind='stable'), axis=1)
  still = [one for one in models if one[0] in (TRAINED, SELECTED, KEPT)]
  kept = [
    ranked < (value if knob == KEPT else use.shape[1]) for knob, value in still
  ]
  own = config.model.router.selected
  selected = [value if knob == SELECTED else own for knob, value in still]
  noise = [value for knob, value in models if knob == NOISE]
  return (
    np.stack(kept),
    np.array(selected, np.int32),
    np.array(noise, np.float32),
  )


def _program(job: Job, blocks, models) -> under.Program:
  config, draws = job.config, job.config.study.knobs
  of = lambda name: [value for knob, value in models if knob == name]
  router, model = config.model.router, job.classifier.model
  changed = lambda field, value: model.changed({f'router.{field}': value})
  limited = [changed('capacity_factor', float(c)) for c in of(CAPACITY)]
  forward = choices.turned(model, blocks)
  attack = adversarial.attack(forward, config)
  # More choices cost more, so that each larger K has a program of its own.
  larger = {
    place: choices.turned(changed('selected', value), blocks)
    for place, (knob, value) in enumerate(models)
    if knob == SELECTED and value > router.selected
  }
  attack_mean = adversarial.attack(choices.averaged(forward), config)
  radii = jnp.array(config.attack.eps, jnp.float32)
  attack_key, verdict_key = jax.random.split(jax.random.key(config.seed))

  def program(params, images, batch, kept, selected, noise):
    mask, index = batch['mask'], batch['index']
    right = lambda found: is_right(found, batch['label']).astype(jnp.float32)

    def by_radius(attack, context):
      one = lambda eps: attack(params, images, batch, eps, context)
      return jnp.concatenate([images[None], jax.lax.map(one, radii)])

    def judged(logits):
      return classes(logits), right(classes(logits))

    def found_by(forward, attack, setting):
      setting = choices.Setting(*setting)
      x = by_radius(attack, setting)
      look = lambda x: judged(forward(params, x, mask, setting)[0])
      return x, jax.lax.map(look, x)

    def still(trained, one):
      number, *setting = one
      x, found = found_by(forward, attack, setting)
      # The first one is the model as trained, whose x_adv are kept.
      return jnp.where(number == 0, x, trained), found

    def noisy(scale):
      whole = choices.Setting(kept[0], router.selected)
      keys = choices.keys_of(attack_key, draws.attack_draws, index)
      x = by_radius(attack_mean, (whole, scale, keys))
      keys = choices.keys_of(verdict_key, draws.verdict_draws, index)

      def look(x):
        each = choices.each_draw(forward, params, x, mask, whole, scale, keys)
        share = jax.vmap(lambda one: right(classes(one)))(each).mean(0)
        return classes(choices.mean_of(each)), share

      return jax.lax.map(look, x)

    def crowded(model, x):
      logits, _ = model.apply(params, x, experts='capacity', mask=mask)
      return judged(logits)

    nothing = jnp.zeros((len(radii) + 1, *images.shape), images.dtype)
    rest = np.array([i for i in range(len(kept)) if i not in larger])
    settings = (jnp.asarray(rest), kept[rest], selected[rest])
    trained, found = jax.lax.scan(still, nothing, settings)
    order = np.argsort([*rest, *larger])
    for place, more in larger.items():
      again = adversarial.attack(more, config)
      _, one = found_by(more, again, (kept[place], selected[place]))
      found = jax.tree.map(
        lambda all_, one: jnp.concatenate([all_, one[None]]), found, one
      )
    found = [jax.tree.map(lambda x: x[order], found)]
    if len(noise):
      found.append(jax.lax.map(noisy, noise))
    for model in limited:
      look = partial(crowded, model)
      found.append(jax.lax.map(look, trained))
    names = ('prediction_after', 'one_draw')
    flat = lambda a: a.reshape(-1, len(images))
    return {
      name: jnp.concatenate([flat(one[place]) for one in found])
      for place, name in enumerate(names)
    }

  return program


def _figure(rows: list[dict], config: ConfigDict) -> LinePlot:
  own = {
    SELECTED: config.model.router.selected,
    KEPT: config.model.experts,
    NOISE: 0,
  }
  lines = []
  for knob, panel in _PANELS.items():
    for eps in (0.0, *config.attack.eps):
      here = [r for r in rows if (r['eps'], r['knob']) == (eps, knob)]
      if here and knob in own:  # dropless is no capacity
        trained = (r for r in rows if (r['eps'], r['knob']) == (eps, TRAINED))
        here.append(next(trained) | {'position': own[knob]})
      if not here:
        continue
      here.sort(key=lambda row: row['position'])
      found = [row['accuracy'] for row in here]
      x = [row['position'] for row in here]
      lines.append(Line.of(under.radius(config, eps), x, found, panel))
  attacked = under.attacked_by(config, rows)
  title = f'Knobs at inference, the same weights\n{attacked}'
  return LinePlot('knobs', title, 'position of the knob', 'accuracy', lines)


def render(results: dict) -> str:
  """Accuracies, a line for each position, with the difference from trained."""
  rows, lines = results['rows'], []
  radii = list(dict.fromkeys(row['eps'] for row in rows))
  at = {(row['knob'], row['position'], row['eps']): row for row in rows}
  for knob, value in dict.fromkeys((r['knob'], r['position']) for r in rows):
    shown = [at[knob, value, eps] for eps in radii]
    name = knob if value is None else f'{knob} {value:g}'
    name += ', by batch' if knob == CAPACITY else ''
    lines.append(
      [
        name,
        *(
          f'{percent(row["accuracy"]["value"])} '
          f'({100 * row["against_as_trained"]["difference"]["value"]:+.1f})'
          for row in shown
        ),
      ]
    )
  config = under.config_of(results)
  heads = ['accuracy (less as trained)']
  heads += [under.radius(config, eps) for eps in radii]
  summary = results['summary']
  return (
    f'{table(heads, lines)}\nas trained: K {summary["selected"]} of '
    f'{summary["experts"]} experts, dropless\n'
    f'noise: {summary["attack_draws"]} draws in the attack, '
    f'{summary["verdict_draws"]} in the verdict; capacity: x_adv of the model '
    'as trained'
  )
