"""Images, x_adv, their difference and changed tokens, as a run kept them."""

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from vmoe_robust.report.page import tokens
from vmoe_robust.report.page.comparison import judged
from vmoe_robust.report.page.runs import Problems, Run

TIMES = 10  # how much a difference is amplified
_LARGEST = 224  # pixels of a side
_MOST_TOGETHER = 2  # blocks whose changes are drawn over each other at first
# Columns of the records of an attack and of a study, before the block.
_CHANGE = ('routing_change/', 'selected/')
# What a filter of the gallery shows: its name, and its text.
FILTERS = {
  'all': 'all',
  'fell': 'fell',
  'stands': 'stands',
  'routing-right': 'routing changed, still right',
  'routing-wrong': 'routing kept, yet wrong',
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """One picture of an image of the gallery."""

  title: str
  words: str  # for those who do not see it
  address: str  # of data:
  is_marked: bool  # changed patches are drawn on it


@dataclasses.dataclass(frozen=True)
class Example:
  """One image of the gallery."""

  run: str
  caption: str
  pictures: Sequence['Picture']
  kinds: Sequence[str]  # of `FILTERS`
  changes: Sequence[tokens.Changes]  # of each sparse block
  grid: str  # the window of their marks


def examples(runs: Sequence[Run], problems: Problems) -> list[Example]:
  """All images that the runs kept for people to look at."""
  out: list[Example] = []
  for run in runs:
    for about in run.results['files'].get('figures', ()):
      if str(about.get('data', '')).endswith('.npz'):
        out += (
          problems.guard(
            f'the gallery of {run.name}',
            functools.partial(_examples, run, about),
          )
          or []
        )
  return out


def size(found: Sequence[Example]) -> int:
  """Characters of all pictures and of the marks on them."""
  return sum(
    sum(len(picture.address) for picture in one.pictures)
    + sum(len(change.path) for change in one.changes)
    for one in found
  )


def blocks(found: Sequence[Example]) -> list[str]:
  """The sparse blocks whose changes are drawn, in the order of the models."""
  names = {change.block for one in found for change in one.changes}
  return sorted(names, key=lambda name: (len(name), name))


def chosen(blocks: Sequence[str]) -> str:
  """The block whose changes are drawn first; '' is any.

  With many blocks there is hardly a patch that changed in none.
  """
  return '' if len(blocks) <= _MOST_TOGETHER else blocks[-1]


def _examples(run: Run, about: Mapping[str, str]) -> list[Example]:
  found = run.figure(about)
  known, experts = _known(run, found), tokens.token_experts(found)
  out = []
  for i, (image, x_adv) in enumerate(
    zip(found['images'], found['x_adv'], strict=True)
  ):
    before, after = str(found['before'][i]), str(found['after'][i])
    title, kinds = known[i] if known else ('', _by_name(before, after))
    changes = tokens.changes(experts, i)
    what = f'{before} becomes {after}' if before != after else before
    caption = f'{title}: {what}' if title else what
    pictures = _pictures(image, x_adv, before, after, tokens.words(changes))
    window = tokens.grid(experts)
    out.append(Example(run.name, caption, pictures, kinds, changes, window))
  return out


def _pictures(image, x_adv, before: str, after: str, changed: str):
  difference = 0.5 + TIMES * (x_adv.astype(float) - image)
  clean, attacked = f'clean, predicted {before}', f'attacked, predicted {after}'
  marked = bool(changed)
  told = f'{attacked}; {changed}' if marked else attacked
  return [
    Picture(clean, clean, png(image), marked),
    Picture(attacked, told, png(x_adv), marked),
    Picture(*2 * (f'difference x {TIMES}',), png(difference), False),
  ]


def _known(run: Run, found: Mapping[str, np.ndarray]):
  """Of each image its title and kinds, by the records; None without index."""
  if 'index' not in found or not len(found['index']):
    return None
  condition = str(found['condition'])
  verdict = judged(run)[condition]
  records = run.results.records
  own = np.flatnonzero(records['condition'].to_numpy() == condition)
  own = own[np.argsort(records['index'].to_numpy()[own], kind='stable')]
  changes = [
    records[name].to_numpy()[own]
    for name in records.column_names
    if name.startswith(_CHANGE)
  ]
  out = []
  for index in found['index']:
    at = int(np.searchsorted(verdict.index, index))
    if at == len(verdict.index) or verdict.index[at] != index:
      raise ValueError(f'image {index} is not in the records')
    right = bool(verdict.right[at])
    kinds = ['stands' if right else 'fell']
    moved = max((float(change[at]) for change in changes), default=None)
    if moved is not None and right and moved > 0:
      kinds.append('routing-right')
    if moved == 0 and not right:
      kinds.append('routing-wrong')
    out.append((f'image {index}', kinds))
  return out


def _by_name(before: str, after: str) -> list[str]:
  """The kind of an image of which only the predictions are known."""
  return ['fell'] if before != after else []


def png(image: np.ndarray) -> str:
  """An image with pixels in [0, 1] as an address that holds it."""
  pixels = np.clip(np.nan_to_num(np.asarray(image, float)), 0, 1)
  pixels = np.round(255 * pixels).astype(np.uint8)
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  made = Image.fromarray(pixels)
  made.thumbnail((_LARGEST, _LARGEST))
  with io.BytesIO() as file:
    made.save(file, 'png', optimize=True)
    content = base64.b64encode(file.getvalue()).decode()
  return f'data:image/png;base64,{content}'
