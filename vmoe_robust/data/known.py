"""What known data would say, for programs that do not read them."""

from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import splits
from vmoe_robust.data.residence import SHARE, never

# Classes, channels and examples of each split; https://www.tensorflow.org/datasets
_KNOWN = {
  'digits': (10, 1, {'train': 1437, 'test': 360}),
  'mnist': (10, 1, {'train': 60_000, 'test': 10_000}),
  'cifar10': (10, 3, {'train': 50_000, 'test': 10_000}),
  'cifar100': (100, 3, {'train': 50_000, 'test': 10_000}),
  'imagenet2012': (1000, 3, {'train': 1_281_167, 'validation': 50_000}),
}


def resolve(config: ConfigDict, examples: int = 0) -> tuple[ConfigDict, int]:
  """Fills in what the data decide, and counts the evaluation's examples.

  Args:
    config: what to rehearse.
    examples: that would be attacked; 0: those of `config.data.eval_split`.

  Raises:
    UserError: the data are not in the table, and the flags do not say.
  """
  config = config.copy_and_resolve_references()
  data, model = config.data, config.model
  classes, channels, lengths = _KNOWN.get(data.name, (0, 0, {}))
  model.num_classes = model.num_classes or classes
  model.channels = model.channels or channels
  for name in ('num_classes', 'channels'):
    if not model[name]:
      raise UserError(
        f'config.data.name={data.name!r} is not known to a rehearsal, which '
        f'reads no data; set --config.model.{name}'
      )
  if not examples and not lengths:
    raise UserError(
      f'config.data.name={data.name!r} is not known to a rehearsal, which '
      'reads no data; set --examples to the number of images to attack'
    )
  if not examples:
    found = splits.ranges(data, data.eval_split, lengths)
    examples = sum(part.stop - part.start for part in found)
  return config, examples


def resident_bytes(data: ConfigDict, channels: int, memory: float) -> int:
  """Bytes of the training split that a run would keep on each device.

  As `residence.on_devices` decides; 0 too where the number of examples is not
  known.

  Args:
    data: `config.data`.
    channels: of an image.
    memory: of a device, in bytes.
  """
  lengths = _KNOWN.get(data.name, (0, 0, {}))[2]
  if data.resident is False or not lengths:
    return 0
  parts = splits.ranges(data, data.split, lengths)
  examples = sum(part.stop - part.start for part in parts)
  examples -= round(examples * data.validation)
  size = examples * data.image_size**2 * channels
  return size if not never(data) and size <= SHARE * memory else 0
