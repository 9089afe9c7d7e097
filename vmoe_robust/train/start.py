"""What is settled before anything is built: fields, and which run it is."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust import staging
from vmoe_robust.checkpoint import (
  configs_by_which_measured,
  open_weights,
  read_class_names,
  read_config,
)
from vmoe_robust.checkpoint.writer import steps
from vmoe_robust.config import (
  UserError,
  differences,
  flatten,
  machine_fields,
  unread,
)
from vmoe_robust.data import (
  Source,
  hold_out,
  lost_classes,
  open_source,
  require_one_order,
  seen_in_training,
)
from vmoe_robust.evaluate.cautions import nearly_black_examples
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.files import is_address
from vmoe_robust.models import padded_batch

# Fields that may change when a run resumes, besides the machine's and those
# that training does not read: they alter neither the model nor what it learns
# from each step.
_FREE = (
  *('config.attack.', 'config.eval.', 'config.checkpoint'),
  *('config.data.eval_split', 'config.data.on_corrupt'),
  *('config.data.on_unlabelled', 'config.data.resident'),
  *('config.train.monitor.on_fall', 'config.train.monitor.max_fall'),
)
# Share of drawn weights in the averaged ones from which it is said.
_DRAWN = 0.05


@dataclasses.dataclass(frozen=True)
class Splits:
  """The examples of a run.

  Args:
    train: to train on.
    test: to judge on in the end.
    validation: a part of the training examples that is held out, or None.
    warnings: of the test examples, such as that some are trained on.
  """

  train: Source
  test: Source
  validation: Source | None = None
  warnings: tuple[str, ...] = ()

  @property
  def watched(self) -> Source:
    """What is measured on while training: not the test, if that can be."""
    return self.test if self.validation is None else self.validation


def open_splits(config: ConfigDict) -> tuple[ConfigDict, Splits]:
  """Opens the data, and fills in what they decide.

  Returns:
    The configuration, and the splits, of which the test has the classes of the
    training split.

  Raises:
    UserError: there are no such data, or the model was told otherwise.
  """
  data = config.data
  source, validation = hold_out(open_source(data, data.split), data.validation)
  test = open_source(data, data.eval_split)
  seen = seen_in_training(
    data, data.eval_split, data.split, data.validation, test.lengths
  )
  config, test = resolve(config, source, test)
  warnings = (*([seen] if seen else []), *nearly_black_examples(data, test))
  for text in warnings:
    logging.warning('%s', text)
  if validation is not None and (lost := lost_classes(source, validation)):
    names = [source.class_names[number] for number in lost[:5]]
    logging.warning(
      'config.data.validation=%s holds out all images of %s of %s classes, '
      'such as %s: they are not learnt, and measured all the same; use a '
      'smaller share',
      *(data.validation, len(lost), len(source.class_names), names),
    )
  return config, Splits(source, test, validation, warnings)


def resolve(
  config: ConfigDict, source: Source, held_out: Source
) -> tuple[ConfigDict, Source]:
  """Fills in what the data decide.

  Args:
    config: of the run.
    source: the examples to train on.
    held_out: the examples to evaluate on.

  Returns:
    The configuration, and `held_out` with the classes of `source`.

  Raises:
    UserError: the model was told otherwise.
  """
  config = config.copy_and_resolve_references()
  for name in ('num_classes', 'channels'):
    config.model[name] = config.model[name] or getattr(source, name)
  check_fit(config, source)
  if config.model.num_classes < 2 and config.train.loss == 'softmax':
    raise UserError(
      f'config.data.name={config.data.name!r} has one class, '
      f'{source.class_names[0]!r}, which every model predicts; use data of two '
      'or more'
    )
  return config, check_fit(config, held_out, source.class_names)


def require_weights(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Refuses weights to start from that cannot be opened.

  They are read much later, when the model has been compiled. A run that has
  checkpoints of its own needs them no more.

  Raises:
    UserError: there are none, or they are damaged.
  """
  if config.init_from and not steps(staging.checkpoints(workdir)):
    open_weights(config.init_from).close()


def _measured_otherwise(config: ConfigDict, saved: ConfigDict) -> list[str]:
  """Free fields that what is measured while training depends on."""
  fields = []
  if config.train.monitor.eps:
    fields = ['attack.norm']
  if config.save.best.startswith('robust_accuracy'):
    own = ('at_end', 'batch_size', 'eps', 'every_steps', 'save_images')
    fields = [f'attack.{name}' for name in config.attack if name not in own]
  if config.save.best:
    fields += ['eval.experts']
    if not config.data.validation:
      fields += ['data.eval_split']
  now, before = flatten(config), flatten(saved)
  return [
    f'config.{name}={now[f"config.{name}"]!r} (was '
    f'{before[f"config.{name}"]!r}), by which config.train.monitor and '
    'config.save.best measure'
    for name in fields
    if now[f'config.{name}'] != before[f'config.{name}']
  ]


def _place(where: str) -> str:
  """A path or address in one spelling."""
  if not where or is_address(where):
    return where.rstrip('/')
  return os.path.abspath(os.path.expanduser(where))


def check_same_run(
  config: ConfigDict, workdir: str | os.PathLike, class_names: Sequence[str]
) -> None:
  """Refuses a work directory that has checkpoints of another run.

  Args:
    config: of the run.
    workdir: of the run.
    class_names: of the data, which number the model's logits.

  Raises:
    UserError: names the fields that differ, or the classes.
  """
  saved = read_config(workdir)
  if saved is None or not steps(staging.checkpoints(workdir)):
    return
  free = (*machine_fields(config.data.name), *unread(config), *_FREE)
  if _place(config.init_from) == _place(saved.init_from):
    free += ('config.init_from',)  # however it is spelt
  changed = differences(config, saved, free)
  # Checkpoints may have been measured before the last start, in other ways.
  for earlier in (
    saved,
    *configs_by_which_measured(workdir, config.save.best),
  ):
    own = _measured_otherwise(config, earlier)
    changed += [line for line in own if line not in changed]
  if changed:
    longer = config.train.steps > saved.train.steps
    way = f', and --config.init_from={workdir} to train on from its weights'
    raise UserError(
      f'--workdir={staging.name(workdir)} has a run with other settings, not '
      f'{"; ".join(changed[:5])}; choose another --workdir{way * longer}, or '
      'set the fields back to resume'
    )
  before, now = read_class_names(workdir), tuple(class_names)
  if not before and config.data.name == 'folder':
    require_one_order(now, f'the run in --workdir={workdir}')
  if before and before != now:
    differ = [name for name in now if name not in before] or list(now)
    raise UserError(
      f'--workdir={workdir} has a run on {len(before)} other classes (the data '
      f'of config.data.name={config.data.name!r} have {differ[:5]} anew or in '
      'another order); set config.data.dir back, or choose another --workdir'
    )


def expected(config: ConfigDict, mesh: Mesh, images: int) -> Iterator[str]:
  """What sizes that were asked for mean, where few would want it."""
  train, warmup = config.train, config.train.optimizer.warmup_steps
  left = train.ema**train.steps
  if left > _DRAWN and not config.init_from:
    yield (
      f'config.train.ema={train.ema}: after {train.steps} steps {left:.0%} of '
      'what is evaluated are the weights as they were drawn; train longer, or '
      'set a smaller one, 0 for none'
    )
  if warmup >= train.steps:
    yield (
      f'config.train.optimizer.warmup_steps={warmup} of {train.steps} steps: '
      'the learning rate rises to the end and does not fall'
    )
  router, size = config.model.router, train.batch_size
  if size > images:
    yield (
      f'config.train.batch_size={size} of {images} images: a batch has some of '
      'them more than once'
    )
  whole = padded_batch(size, router.group_images, mesh)
  if config.model.experts and router.name != 'soft' and whole > size:
    yield (
      f'config.train.batch_size={size} is no multiple of config.model.router.'
      f'group_images={router.group_images} x {mesh_lib.batch_shards(mesh)} '
      f'devices: the model runs on {whole} images a step, {whole - size} of '
      f'them empty; use batches of {whole}, or smaller groups'
    )
