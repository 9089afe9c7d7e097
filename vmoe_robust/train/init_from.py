"""Starting weights from another run or from what others released."""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust.checkpoint import (
  HEAD,
  WAYS,
  Plan,
  Weights,
  matches,
  open_weights,
  plan,
  shapes_of,
  take,
)
from vmoe_robust.config import UserError, moe_blocks
from vmoe_robust.data import names_compare, require_one_order
from vmoe_robust.files import write_json
from vmoe_robust.report.table import table
from vmoe_robust.report.terminal import say

# In the work directory: how each weight started.
REPORT = 'init_from.json'
# What weights of the same shapes may differ in.
_UNSHAPED = ('stem', 'patch', 'mean', 'std', 'heads')
_UNSHAPED_ROUTER = ('name', 'gate', 'unit', 'renormalize', 'selected')
# Groups of weights that are shown of each kind.
_SHOWN = 3


def start_from(
  config: ConfigDict,
  params: PyTree,
  workdir: str | os.PathLike,
  class_names: Sequence[str],
) -> PyTree:
  """Replaces fresh weights by those of `config.init_from`, and says how.

  What fits in another way is adapted (see `checkpoint.plan`). A head of another
  number of classes, of other classes or of another kind stays fresh; if the
  classes are the same in another order, so are the head's outputs. A table is
  shown, and the full list is left as `init_from.json`.

  Args:
    config: of the run.
    params: fresh weights on their mesh; what is read is placed as they are.
    workdir: for the list.
    class_names: of the data, in the order of the model's logits.

  Raises:
    UserError: there are no such weights; or some of them, or of the model's,
      are unexpected and not named in `config.init_from_except`.
  """
  with contextlib.closing(open_weights(config.init_from)) as weights:
    there, wanted = shapes_of(weights.shapes), shapes_of(params)
    order, head, said = _order(weights.class_names, tuple(class_names))
    if _pooling(there) != _pooling(wanted):
      order, head = None, ('head',)
      said = 'The head is new: images are pooled in another way.'
    if _has_pre_logits(there) != _has_pre_logits(wanted):
      order, head = None, ('head',)
      said = 'The head is new: a layer (pre_logits) before it came or went.'
    excepted = (*config.init_from_except, *head)
    found = plan(there, wanted, weights.renamed, excepted, order)
    _check(config, found, there, wanted)
    if _heads_of_folders(config, weights, found):
      require_one_order(class_names, f'config.init_from={config.init_from!r}')
    params = take(weights, found, params, config.init_from_noise, config.seed)
    if jax.process_index() == 0:
      write_json(Path(workdir) / REPORT, _listed(weights, found, wanted))
    shown = _shown(found, there, wanted)
    if 'head/kernel' in found.source or head:
      shown += f'\n{said}'
    if weights.config is not None:
      shown += _told(config.model, weights.config.model)
    say(f'started from {weights.where}\n\n{shown}\n')
  return params


def _pooling(names: Iterable[str]) -> set[str]:
  """Weights by which a head makes one vector of an image's tokens."""
  pools = tuple(name for name in HEAD if name not in ('head', 'pre_logits'))
  return {name.split('/')[0] for name in names if matches(name, pools)}


def _has_pre_logits(names: Iterable[str]) -> bool:
  return any(matches(name, ('pre_logits',)) for name in names)


def _order(
  there: tuple[str, ...], names: tuple[str, ...]
) -> tuple[tuple[int, ...] | None, tuple[str, ...], str]:
  """What becomes of the head, by the names of the classes.

  Returns:
    The class there of each class here if their order differs; what is not to
    be taken; and a sentence about both.
  """
  if there == names:
    return None, (), 'The head is kept: its classes are the same.'
  if not there or (
    len(there) == len(names) and not names_compare(there, names)
  ):
    said = f'its {len(names)} classes, whose names could not be compared'
    return None, (), f'The head is kept for {said}.'
  if set(there) == set(names) and len(set(names)) == len(names) == len(there):
    said = 'The head is kept in another order: the classes are the same.'
    return tuple(map(there.index, names)), (), said
  new = [name for name in names if name not in set(there)]
  said = (
    f'{len(new)} of the {len(names)} classes are not among those of the '
    f'weights, such as {new[0]!r}'
    if new
    else 'the weights have other classes besides'
  )
  return None, ('head',), f'The head is new: {said}.'


def _heads_of_folders(
  config: ConfigDict, weights: Weights, found: Plan
) -> bool:
  """Whether a head is kept whose classes are folders by their order alone."""
  kept = 'head/kernel' in found.source
  return kept and not weights.class_names and config.data.name == 'folder'


def _check(config: ConfigDict, found: Plan, there: dict, wanted: dict):
  for pattern in config.init_from_except:
    if not any(matches(name, (pattern,)) for name in there | wanted):
      raise UserError(
        f'config.init_from_except={pattern!r} names no weight, here or in '
        f'{config.init_from!r}; write it like {next(iter(wanted))!r}, or the '
        'beginning of that'
      )
  if config.init_from_noise and 'upcycled' not in found.how.values():
    raise UserError(
      f'config.init_from_noise={config.init_from_noise} is of experts that an '
      f'MLP of config.init_from={config.init_from!r} starts, and none does; '
      'leave it out'
    )
  if not found.unexpected:
    return
  absent = [name for name in found.unexpected if name not in there]
  alone = [name for name in found.unexpected if name not in wanted]
  differ = [
    name for name in found.unexpected if name in there and name in wanted
  ]
  said = [
    f'{name} is {there[name]} in it and {wanted[name]} in the model'
    for name in differ[:_SHOWN]
  ]
  rest = len(differ) - _SHOWN
  said += [f'{rest} more differ'] if rest > 0 else []
  said += [f'it lacks {_groups(absent, wanted)}'] if absent else []
  said += [f'it alone has {_groups(alone, there)}'] if alone else []
  raise UserError(
    f'config.init_from={config.init_from!r} is of another model: '
    f'{"; ".join(said)}. Set config.model as it was trained with, or name in '
    'config.init_from_except what is not to be taken'
  )


def _told(model: ConfigDict, there: ConfigDict) -> str:
  """What shapes do not tell and is other than in training; '' if nothing is."""
  fields = [(model, there, name, name) for name in _UNSHAPED]
  if moe_blocks(model) and there.experts:
    here, was = model.router, there.router
    names = list(_UNSHAPED_ROUTER)
    if here.name == was.name == 'expert_choice':
      names.append('capacity_factor')  # how many tokens an expert chooses
    fields += [(here, was, name, f'router.{name}') for name in names]
  lines = [
    f'config.model.{path}={here[name]!r}, and {was[name]!r} where the weights '
    'were trained'
    for here, was, name, path in fields
    if here[name] != was[name]
  ]
  return ''.join(f'\n{line}' for line in lines)


def _listed(weights: Weights, found: Plan, wanted: dict) -> dict:
  """How each weight started, for people and programs to look up."""
  shape = lambda name: list(weights.shapes[name].shape)
  there = lambda name: {
    'from': weights.renamed.get(name, name),
    'shape_there': shape(name),
  }
  return {
    'init_from': weights.where,
    'weights': {
      name: {'how': way, 'shape': list(wanted[name])}
      | (there(found.source[name]) if name in found.source else {})
      for name, way in found.how.items()
    },
    'left_over': {
      weights.renamed.get(name, name): shape(name) for name in found.left_over
    },
  }


def _shown(found: Plan, there: dict, wanted: dict) -> str:
  rows = []
  for way in WAYS:
    names = [name for name, how in found.how.items() if how == way]
    same = way in ('loaded', 'renamed')
    rows.append((way, len(names), '' if same else _groups(names, wanted)))
  left = found.left_over
  rows.append(('left over', len(left), _groups(left, there)))
  return table(('weights', 'arrays', 'which'), [row for row in rows if row[1]])


def _groups(names: list[str], shapes: dict) -> str:
  """Modules instead of their weights, and those of all blocks as one."""
  groups = {}
  for name in names:
    block = re.search(r'(?<=encoderblock_)\d+', name)
    module = name.rpartition('/')[0] or name
    parts = re.sub(r'(?<=encoderblock_)\d+', '{}', module).split('/')
    depth = 4 if 'Moe' in parts else 3
    blocks, members = groups.setdefault('/'.join(parts[:depth]), ({}, []))
    blocks[block and block[0]] = None
    members.append(name)
  shown = [
    group.replace('{}', f'{{{",".join(blocks)}}}' if '{}' in group else '')
    + (f' {shapes[members[0]]}' if len(members) == 1 else '')
    for group, (blocks, members) in groups.items()
  ]
  rest = len(shown) - _SHOWN
  more = [f'{rest} more'] if rest > 0 else []
  return ', '.join(shown[:_SHOWN] + more)
