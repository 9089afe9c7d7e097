"""`config.study.name = 'misrouting'`: do corruptions harm by wrong experts?

Noise may send tokens to experts that are not theirs. With the right routing a
sparse model is more robust to noise of the features than a dense one, and with
a wrong routing less (arXiv:2601.14792). Each corrupted image is judged with its
own routing, and with that of the clean image: what clean routing wins is the
damage by misrouting.
"""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vmoe_robust.config import batch_size
from vmoe_robust.data import Corruption, EvalBatches, eval_batches
from vmoe_robust.data.corruptions import CLEAN
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate import adversarial, routing
from vmoe_robust.evaluate.batches import progress, rows_of
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding
from vmoe_robust.report.figures import Bar, BarPlot, Line, LinePlot
from vmoe_robust.report.findings import Columns, Findings
from vmoe_robust.report.statistics import DIFFERENCE, SHARE, mean, paired
from vmoe_robust.report.table import percent, points, table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import as_floats
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies.corruptions import GROUPS
from vmoe_robust.studies.frozen_routing import frozen, routing_of

OWN, CLEAN_ROUTING = 'own', 'clean'
WAYS = (OWN, CLEAN_ROUTING)


def run(job: Job) -> Findings:
  """Accuracy under each corruption, with either routing.

  Clean routing is which experts a token of the clean image had, and with which
  gates. It takes 3 forward passes for each image and corruption at a severity,
  and for the clean images, whose two accuracies have to be the same.

  Raises:
    UserError: the model is dense, or its router is told the class.
  """
  blocks = under.require_experts(job, 'misrouting')
  columns, skipped = predictions(job)
  shown = variants(job.config)
  rows = under.rows(columns, _conditions(shown), ('routing_change',))
  right = {
    (one, way): under.right(under.of(columns, _name(one, way)))
    for one in shown
    for way in WAYS
  }
  summary = _summary(right, job.config) | {'blocks': list(blocks)}
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=rows,
    summary=summary,
    figures=[_by_severity(right, shown), _differences(summary, rows)],
    warnings=_warnings(summary, job.config),
  )


def variants(config: ConfigDict) -> tuple[Corruption, ...]:
  """What every example is shown as: clean first, then the corruptions."""
  settings = config.study.misrouting
  return (
    Corruption(),
    *(
      Corruption(name, severity, config.seed)
      for name in settings.names
      for severity in settings.severities
    ),
  )


class _Both:
  """Batches of corrupted images, with the clean ones beside them."""

  def __init__(self, corrupted: EvalBatches, clean: EvalBatches):
    self._both = corrupted, clean

  def __iter__(self) -> Iterator[dict[str, Array]]:
    for batch, other in zip(*self._both, strict=True):
      yield batch | {'clean': other['image']}

  def close(self):
    with contextlib.closing(self._both[0]), contextlib.closing(self._both[1]):
      pass


def predictions(job: Job) -> tuple[Columns, set[int]]:
  """A row for each variant, routing and example, and the examples skipped."""
  config, shown = job.config, variants(job.config)
  predict = _program(job)
  size = batch_size(config, 'study')
  total = -(-len(job.source) * len(shown) // size)

  def stream(corruptions, first):
    return eval_batches(
      config.data,
      job.source,
      batch_size=size,
      sharding=batch_sharding(job.classifier.mesh),
      corruptions=corruptions,
      first=first,
    )

  def batches(first):
    clean = len(shown) * (Corruption(),)
    return _Both(stream(shown, first), stream(clean, first))

  with progress(total, 'misrouting', 'batch') as update:

    def find(number, batch):
      images = batch.pop('image'), batch.pop('clean')
      found = predict(job.classifier.params, *images, batch['mask'])
      row = fetch(batch | found)
      update(number + 1, int(row['mask'].sum()))
      return row

    columns, skipped = rows_of(job, batches, find)
  return _stacked(columns, shown), skipped


def _program(job: Job):
  """A jitted `(params, images, clean, mask)` to columns, images as uint8."""
  model, config = job.classifier.model, job.config
  forward, held = adversarial.plain(model), frozen(model)

  def predict(params, images, clean, mask):
    images = as_floats(images)
    _, before = forward(params, as_floats(clean), mask, ())
    own, now = forward(params, images, mask, ())
    other, _ = held(params, images, mask, routing_of(before))
    selected = lambda record: routing.selected(record, config.model, len(own))
    changes = [
      routing.change(selected(record)[0], selected(now.records[block])[0])
      for block, record in before.records.items()
    ]
    return {
      OWN: classes(own),
      CLEAN_ROUTING: classes(other),
      'routing_change': jnp.stack(changes).mean(0),
    }

  return jax.jit(predict)


def _stacked(columns: Columns, shown: Sequence[Corruption]) -> Columns:
  """A row for each routing, examples of a condition by index."""
  columns = dict(columns)
  variant = columns.pop('variant')
  order = np.lexsort((columns['index'], variant))
  after = {way: columns.pop(way)[order] for way in WAYS}
  columns = {name: column[order] for name, column in columns.items()}
  out = {name: np.concatenate(2 * [x]) for name, x in columns.items()}
  # Held at the clean image's choices, none moves.
  moved = {OWN: columns['routing_change']}
  still = np.zeros_like(moved[OWN])
  out['routing_change'] = np.concatenate([moved.get(w, still) for w in WAYS])
  out['prediction_after'] = np.concatenate([after[way] for way in WAYS])
  names = {way: np.array([_name(one, way) for one in shown]) for way in WAYS}
  out['condition'] = np.concatenate([names[w][variant[order]] for w in WAYS])
  return out


def _name(shown: Corruption, way: str) -> str:
  what = CLEAN if shown.name == CLEAN else f'{shown.name} {shown.severity}'
  return f'{what}, {way} routing'


def _conditions(shown: Sequence[Corruption]) -> list[under.Condition]:
  return [
    under.Condition(
      _name(one, way),
      {'corruption': one.name, 'severity': one.severity, 'routing': way},
    )
    for one in shown
    for way in WAYS
  ]


def _summary(right: dict, config: ConfigDict) -> dict:
  """What clean routing wins: at each severity, by corruption, and overall."""
  settings, (clean, *rest) = config.study.misrouting, variants(config)
  pair = lambda one: paired(right[one, CLEAN_ROUTING], right[one, OWN])
  of = lambda name: [one for one in rest if one.name == name]
  return {
    'clean': pair(clean),
    'compared': {f'{one.name} {one.severity}': pair(one) for one in rest},
    'corruptions': {name: _means(right, of(name)) for name in settings.names},
    'overall': _means(right, rest),
  }


def _means(right: dict, shown: Sequence[Corruption]) -> dict:
  """Accuracies and their difference, of each image the mean over `shown`."""
  each = {
    way: np.mean([right[one, way] for one in shown], axis=0) for way in WAYS
  }
  found = {
    f'{way}_routing': mean(values, SHARE) for way, values in each.items()
  }
  return found | {
    'difference': mean(each[CLEAN_ROUTING] - each[OWN], DIFFERENCE)
  }


def _warnings(summary: dict, config: ConfigDict) -> list[str]:
  out = []
  differ = summary['clean']['only_first'] + summary['clean']['only_second']
  if differ:
    out.append(
      f'{differ} clean images are predicted otherwise with their own routing '
      'held: differences as small as that are rounding'
    )
  if 'frost' in config.study.misrouting.names:
    out.append('frost is drawn, not photographed')
  return out


def _by_severity(right: dict, shown: Sequence[Corruption]) -> LinePlot:
  """Mean accuracy over the corruptions of a group, a line a routing."""
  clean, *rest = shown
  lines = []
  for group in dict.fromkeys(GROUPS[one.name] for one in rest):
    here = [one for one in rest if GROUPS[one.name] == group]
    severities = sorted({one.severity for one in here})
    for way in WAYS:
      found = [
        _means(right, some)[f'{way}_routing']
        for some in (
          [clean],
          *([o for o in here if o.severity == s] for s in severities),
        )
      ]
      label, dashed = f'{way} routing', way == CLEAN_ROUTING
      x = [0, *severities]
      lines.append(Line.of(label, x, found, group, dashed))
  n = len(right[clean, OWN])
  title = f'Corruptions with own and with clean routing, {n:,} examples'
  return LinePlot('misrouting', title, 'severity', 'mean accuracy', lines)


def _differences(summary: dict, rows: list[dict]) -> BarPlot:
  bars = []
  for name, found in summary['corruptions'].items():
    won, label = found['difference'], name.replace('_', ' ')
    bars.append(Bar.of(label, won, GROUPS[name], times=100))
  won = summary['overall']['difference']
  bars.append(Bar.of('all corruptions', won, 'all', times=100))
  return BarPlot(
    'misrouting_differences',
    f'What clean routing wins, {rows[0]["accuracy"]["n"]:,} examples',
    'accuracy, paired difference in points, mean over severities',
    bars,
    unit='points',
  )


def render(results: dict) -> str:
  """Mean accuracies with either routing, a line a corruption."""
  summary, clean = results['summary'], results['rows'][0]['accuracy']['value']
  lines = [[CLEAN, percent(clean), percent(clean), '']]
  lines[0][2] = percent(results['rows'][1]['accuracy']['value'])
  for name, found in (
    *summary['corruptions'].items(),
    ('all', summary['overall']),
  ):
    lines.append(
      [
        name,
        *(percent(found[f'{way}_routing']['value']) for way in WAYS),
        points(found['difference']),
      ]
    )
  heads = ['mean accuracy', *(f'{way} routing' for way in WAYS)]
  return table([*heads, 'clean less own, points'], lines)
