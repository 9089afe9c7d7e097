"""The model that weights are of, read off their shapes."""

import math
import re
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from vmoe_robust.config import UserError, default

_DENSE = re.compile(r'Encoder/encoderblock_\d{1,4}/Mlp/Dense_0/kernel')
_BLOCK = re.compile(r'Encoder/encoderblock_(\d{1,4})/')


def recognise(
  shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[ConfigDict, int]:
  """`config.model` and the side of the images.

  What shapes do not tell has its default: above all K (`router.selected`), and
  the mean and deviation of pixels.

  Args:
    shapes: of the weights, by their names.
    where: they are, for the errors.

  Raises:
    UserError: they are not those of a ViT or V-MoE with learned positions.
  """

  def shape(name, rank):
    found = shapes.get(name, ())
    if len(found) != rank or 0 in found:
      raise UserError(
        f'{where} is no ViT or V-MoE that is known: {name} is '
        f'{found or "absent"} in it; give the weights of one'
      )
    return found

  if any(name.startswith('stem/') for name in shapes):
    raise UserError(
      f"{where} has a stem of convolutions (config.model.stem='conv'), whose "
      'shapes do not tell the side of a patch; give the work directory of the '
      'run or a .safetensors file, which have the configuration with them'
    )

  model, block = default().model, 'Encoder/encoderblock_0'
  model.patch, _, model.channels, model.hidden = shape('embedding/kernel', 4)
  numbers = {int(m[1]) for m in map(_BLOCK.match, shapes) if m}
  model.layers = max(numbers, default=-1) + 1
  for number in range(model.layers):
    shape(f'Encoder/encoderblock_{number}/LayerNorm_0/scale', 1)
  model.heads = shape(f'{block}/SelfAttention/query/kernel', 3)[1]
  router = 'Moe/Router/dense/kernel'
  sparse = [
    number
    for number in sorted(numbers)
    if any(n.startswith(f'Encoder/encoderblock_{number}/Moe/') for n in shapes)
  ]
  if sparse:
    first = f'Encoder/encoderblock_{sparse[0]}'
    if f'{first}/Moe/Router/frozen' in shapes:
      router, model.router.frozen = 'Moe/Router/frozen', True
    model.experts = shape(f'{first}/{router}', 2)[1]
    if f'{first}/Moe/Router/bias' in shapes:  # how fast it moved is not told
      model.router.update(dict(balance_rate=0.001, load_weight=0.0))
    _widths(model, shapes, first, shape)
    model.moe_blocks = tuple(sparse)
    model.router.selected = min(2, model.experts)
  else:
    model.mlp = shape(f'{block}/Mlp/Dense_0/kernel', 2)[1]
  model.num_classes = shape('head/kernel', 2)[1]
  if 'pre_logits/kernel' in shapes:
    model.pre_logits = shape('pre_logits/kernel', 2)[1]
  model.head = 'map' if 'map_probe' in shapes else 'gap'
  model.head = 'seqpool' if 'seqpool/kernel' in shapes else model.head
  model.head = 'token' if 'cls' in shapes else model.head
  if f'{block}/LayerScale_0/scale' in shapes:
    model.layer_scale = 0.1  # where it started is not told, and not needed
  positions = shape('Encoder/posembed_input/pos_embedding', 3)[1]
  patches = positions - (model.head == 'token')
  side = math.isqrt(max(patches, 0))
  if not side or side**2 != patches:
    raise UserError(
      f'{where} has position embeddings of {patches} patches, which are no '
      'square; only square images are known'
    )
  return model, side * model.patch


def _widths(model: ConfigDict, shapes, first: str, shape: Callable) -> None:
  """Hidden units of dense MLPs, of experts and of shared ones."""
  width = shape(f'{first}/Moe/Mlp/Dense_0/kernel', 3)[2]
  dense = [n for n in shapes if _DENSE.fullmatch(n)]
  model.mlp = shape(dense[0], 2)[1] if dense else width
  model.expert_mlp = width if width != model.mlp else 0
  if f'{first}/Shared/Dense_0/kernel' in shapes:
    shared = shape(f'{first}/Shared/Dense_0/kernel', 2)[1]
    model.shared_experts = shared // width
