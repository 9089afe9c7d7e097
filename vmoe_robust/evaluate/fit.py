"""Whether a model and a data set belong together."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import Source, match_classes, require_one_order


def check_fit(
  config: ConfigDict, source: Source, class_names: Sequence[str] | None = None
) -> Source:
  """Refuses data of other classes, channels or labels than the model's.

  Args:
    config: with the model.
    source: a split.
    class_names: what the model's logits stand for; empty if that is not known,
      and None where the source itself decides it.

  Returns:
    The source with labels as the model numbers them; see `match_classes`.

  Raises:
    UserError: names the field, its value and what would fit.
  """
  data = f'config.data.name={config.data.name!r}'
  if class_names is not None:
    if not class_names and config.data.name == 'folder':
      require_one_order(source.class_names, 'the model')
    source = match_classes(source, class_names, data)
  for name in ('num_classes', 'channels'):
    there = getattr(source, name)
    if config.model[name] != there:
      raise UserError(
        f'config.model.{name}={config.model[name]} does not fit {data}, which '
        f'has {there}; use {there}, or other data'
      )
  for name in ('mean', 'std'):
    if len(config.model[name]) not in (1, source.channels):
      raise UserError(
        f'config.model.{name}={config.model[name]} is not one number, nor one '
        f'for each of the {source.channels} channels of {data}'
      )
  fit = 'sigmoid' if source.multi_label else 'softmax'
  if config.train.loss != fit:
    several = 'several labels' if source.multi_label else 'one label'
    raise UserError(
      f'config.train.loss={config.train.loss!r} does not fit {data}, which has '
      f'{several} an image; use {fit!r}'
    )
  return source
