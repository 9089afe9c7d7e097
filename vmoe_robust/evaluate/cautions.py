"""What is to be known of data before a number on them is believed."""

import os
import re

from ml_collections import ConfigDict

from vmoe_robust import files
from vmoe_robust.config import UserError, attacks
from vmoe_robust.data import Source, examples, nearly_black, seen_in_training

_LOOKED_AT = 16  # images; each process reads them


def cautions(
  config: ConfigDict, trained: ConfigDict | None, found: Source, source: Source
) -> tuple[str, ...]:
  """Warnings of examples that a model is judged on.

  Args:
    config: of the judging.
    trained: of the run that made the weights; None if it is not known.
    found: the examples, as the data set numbers their classes.
    source: the same as the model numbers them.
  """
  return (
    *seen(config, trained, source),
    *_fewer_classes(found.num_classes, source.num_classes),
    *nearly_black_examples(config.data, source),
    *_outside(config),
  )


def seen(
  config: ConfigDict, trained: ConfigDict | None, source: Source
) -> tuple[str, ...]:
  """A warning if weights were trained on what they are judged on.

  Args:
    config: of the judging.
    trained: of the run that made the weights; None if it is not known.
    source: the examples.
  """
  if trained is None:
    return ()
  data, before = config.data, trained.data
  try:
    if _called(data) != _called(before):
      return ()
    found = seen_in_training(
      data, data.split, before.split, before.validation, source.lengths
    )
  except UserError:  # this copy of the data has not what was trained on
    return ()
  return (found,) if found else ()


def nearly_black_examples(data: ConfigDict, source: Source) -> list[str]:
  """A warning if some images from all over the split are nearly black.

  Args:
    data: `config.data`.
    source: examples to judge on; one of several labels must have one.
  """
  images, _ = examples(source, data, _LOOKED_AT)
  return nearly_black(images)


def _called(data: ConfigDict) -> tuple[str, str]:
  """The name of a data set without a version, or the folder that it is."""
  if data.name == 'folder':
    return data.name, os.path.realpath(files.expanded(data.dir))
  return re.sub(r'[:/]\d+\.\d+\.\d+$', '', data.name), ''


def _outside(config: ConfigDict) -> tuple[str, ...]:
  """A warning of a study whose x_adv may be no images."""
  paper = config.attack.name == 'paper'
  if config.mode != 'study' or not attacks(config) or not paper:
    return ()
  return (
    "config.attack.name='paper' neither projects nor clips: x_adv may have "
    "pixels outside [0, 1], which mode 'attack' counts, and a study does not",
  )


def _fewer_classes(there: int, known: int) -> tuple[str, ...]:
  if there == known:
    return ()
  return (
    f'the data have {there:,} of the {known:,} classes of the model, whose '
    f'predictions are among all {known:,}: what others publish of such data '
    f'may be among the {there:,} alone',
  )
