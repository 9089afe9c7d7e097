"""A model card: Markdown in the form of the Hugging Face hub.

The front matter is that of https://huggingface.co/docs/hub/model-cards: tags,
data, and a `model-index` with what was measured.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.verdict import attack_name
from vmoe_robust.report.table import percent, radius, some_of

_MOST_RADII = 5  # of a run
# Names of the hub for data sets that have others here; 'folder' is of nobody.
_HUB = {
  'cifar10': 'uoft-cs/cifar10',
  'cifar100': 'uoft-cs/cifar100',
  'imagenet2012': 'ILSVRC/imagenet-1k',
  'folder': '',
}
# Of JSON a text, or what stands before an exponent if it has no dot.
_TEXT_OR_WHOLE = re.compile(r'"(?:\\.|[^"\\])*"|(?<![\d.])(\d+)(?=e)')


@dataclasses.dataclass(frozen=True)
class About:
  """What is known of weights besides the numbers of runs.

  Attributes:
    name: of the model.
    sentence: what it is.
    is_sparse: whether it has sparse blocks.
    dataset: that it was trained on; '' is not known.
    model: fields and texts, in their order.
    training: the same; empty if it is not recorded.
    file: that `vmoe_robust.load` opens.
    images: what the loaded model takes.
    checksums: of what, and the checksum.
  """

  name: str
  sentence: str
  is_sparse: bool
  dataset: str
  model: Sequence[tuple[str, str]]
  training: Sequence[tuple[str, str]]
  file: str
  images: str
  checksums: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Measured:
  """One accuracy: of clean images, or under an attack at a radius."""

  attack: str  # '': clean images
  judged: str  # '', or how the model was run, as ', experts with capacity'
  norm: str
  radius: str
  run: str
  data: str
  split: str  # with the data's name
  estimate: Mapping[str, Any]
  eps: float | None = None

  @property
  def value(self) -> float:
    """The share of images that are right."""
    return self.estimate['value']

  @property
  def percent(self) -> str:
    """The same as people read it."""
    return percent(self.value)

  @property
  def interval(self) -> str:
    """Its 95% interval."""
    ends = self.estimate['interval']
    return f'{percent(ends[0])} to {percent(ends[1])}' if ends else 'unknown'

  @property
  def name(self) -> str:
    """As the hub's tables have it."""
    if not self.attack:
      return f'Clean accuracy{self.judged}'
    attack = f'{self.attack}{self.judged}'
    return f'Accuracy under {attack}, {self.norm} {self.radius}'

  @property
  def key(self) -> tuple[object, ...]:
    """What makes it another number; each run has the clean one once more."""
    run = self.run if self.attack else ''
    return self.name, self.split, self.value, self.estimate['n'], run

  @property
  def args(self) -> dict[str, Any]:
    """What the number depends on, for programs that read the card."""
    found = dict(images=self.estimate['n'], interval=self.estimate['interval'])
    if self.eps is None:
      return found
    return dict(norm=self.norm, eps=self.eps) | found


def card(
  about: About, runs: Sequence[Run], problems: Problems, license: str = ''
) -> str:
  """The card as Markdown.

  Args:
    about: the weights.
    runs: that judged these very weights; attacks among them are shown.
    problems: gets a line for each run that is damaged.
    license: as the hub names it, such as 'apache-2.0'; left out if empty.
  """
  measured: list[Measured] = []
  for run in runs:
    if run.is_attack:
      found = problems.guard(run.name, functools.partial(_measured, run))
      for one in found or ():
        if one.key not in [other.key for other in measured]:
          measured.append(one)
  kinds = ['mixture-of-experts', 'v-moe'] if about.is_sparse else []
  tags = ['jax', 'flax', 'vision-transformer', *kinds, 'adversarial-robustness']
  return (
    _environment()
    .get_template('card.md')
    .render(
      dataclasses.asdict(about),
      license=license,
      tags=tags,
      dataset=_HUB.get(about.dataset, about.dataset),
      measured=measured,
      sweeps=[run.name for run in runs if _is_sweep(run)],
      by_autoattack=any(
        m.attack == 'autoattack' and not m.judged for m in measured
      ),
      warnings=[(run.name, w) for run in runs for w in run.results['warnings']],
    )
  )


def _is_sweep(run: Run) -> bool:
  return run.is_attack and len(run.results['rows']) > _MOST_RADII


def _measured(run: Run) -> list[Measured]:
  results = run.results
  data = results['data']
  split = f'{data["name"]} {data["split"]}'.strip()
  where = dict(run=run.name, data=data['name'], split=split)
  clean = results['summary']['clean_accuracy']
  judged = f', {run.selected} experts a token' if run.selected else ''
  if results['asked']['experts'] == 'capacity':
    judged += ', experts with capacity'
  out = [Measured('', judged, '', '', estimate=clean, **where)]
  for row in some_of(results['rows'], _MOST_RADII):
    attack = attack_name(run, row)
    at = radius(row['norm'], row['eps'])
    estimate, eps = row['robust_accuracy'], row['eps']
    out.append(
      Measured(
        attack, judged, row['norm'], at, estimate=estimate, eps=eps, **where
      )
    )
  return [one for one in out if one.value is not None]


def _cell(text: object) -> str:
  """Text that stays in its line and column."""
  return ' '.join(str(text).split()).replace('|', '\\|').replace('<', '&lt;')


def _json(value: object) -> str:
  """JSON is YAML, so that no name can end a field.

  But of YAML 1.1, a float without a dot, such as 2e-05, is text.
  """
  text = json.dumps(value, ensure_ascii=False)
  return _TEXT_OR_WHOLE.sub(lambda m: m[0] + '.0' * (m[1] is not None), text)


@functools.cache
def _environment() -> jinja2.Environment:
  found = jinja2.Environment(
    loader=jinja2.PackageLoader('vmoe_robust.report', ''),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  found.filters['json'] = _json
  found.filters['cell'] = _cell
  return found
