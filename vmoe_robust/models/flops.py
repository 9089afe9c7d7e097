"""Floating-point operations of a model, by formula."""

from ml_collections import ConfigDict

from vmoe_robust.config import moe_blocks
from vmoe_robust.models import stem
from vmoe_robust.models.routers.expert_choice import capacity


def forward(model: ConfigDict, image_size: int, channels: int = 3) -> float:
  """Active FLOPs of one image's forward pass.

  A training step is three of these, a PGD step two. Multiplications and
  additions of the matrix products are counted; normalisations are not.
  Capacity left empty and recomputation do not count as active. Choices that
  are dropped for want of capacity do: the numbers are those of 'dropless', and
  above what is done with `router.capacity_factor` below 1.
  """
  dim, patches = model.hidden, (image_size // model.patch) ** 2
  tokens = patches + (model.head == 'token')
  attention = 8 * tokens * dim**2 + 4 * tokens**2 * dim
  mlp = 4 * tokens * dim * model.mlp
  sparse = len(moe_blocks(model))
  head = 2 * dim * (model.pre_logits or model.num_classes)
  if model.pre_logits:
    head += 2 * model.pre_logits * model.num_classes
  if model.head == 'map':  # attention of one query, and an MLP
    head += 4 * (tokens + 1) * dim**2 + 4 * tokens * dim + 4 * dim * model.mlp
  if model.head == 'seqpool':
    head += 4 * tokens * dim
  return (
    _stem(model, image_size, channels)
    + model.layers * attention
    + (model.layers - sparse) * mlp
    + sparse * _moe(model, tokens)
    + head
  )


def _stem(model: ConfigDict, image_size: int, channels: int) -> float:
  """The convolutions that make tokens; zeros around the image count too."""
  if model.stem == 'patch':
    patches = (image_size // model.patch) ** 2
    return 2 * patches * channels * model.patch**2 * model.hidden
  total, side, inputs = 0, image_size, channels
  sizes = stem.widths(model.patch, model.hidden)
  for stride, outputs in zip(stem.strides(model.patch), sizes, strict=True):
    side //= stride
    total += 2 * side**2 * 9 * inputs * outputs
    inputs = outputs
  return total


def _moe(model: ConfigDict, tokens: int) -> float:
  """One sparse MLP: the router and the experts that a token uses."""
  router, dim = model.router, model.hidden
  one = 4 * tokens * dim * (model.expert_mlp or model.mlp)  # expert a token
  shared = model.shared_experts * one
  if router.name == 'soft':
    slots = model.experts * router.slots
    mixing = 3 * 2 * tokens * dim * slots  # scores, dispatch, combine
    return mixing + one * slots / tokens + shared
  scores = 2 * tokens * dim * model.experts
  if router.name in ('hash', 'oracle'):
    scores = 0
  elif router.unit == 'image':
    scores /= tokens
  served = router.selected
  if router.name == 'expert_choice':
    # All slots of an expert are filled, of an image that is routed alone.
    served = model.experts * capacity(tokens, router, model.experts) / tokens
  return scores + served * one + shared
