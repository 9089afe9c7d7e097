"""A dense ViT of ours in PyTorch, to attack it with what others wrote."""

from collections.abc import Mapping

import numpy as np

from vmoe_robust.models.stem import strides


def model(
  weights: Mapping[str, np.ndarray],
  positions: np.ndarray,
  *,
  patch: int,
  heads: int,
  stem: str = 'patch',
  head: str = 'gap',
  mean: float | tuple = 0.5,
  std: float | tuple = 0.5,
  device: str = 'cpu',
):
  """A `torch.nn.Module` from images, NCHW in [0, 1], to logits.

  Args:
    weights: by their names, joined by '/'.
    positions: [tokens, width], added to the tokens.
    patch: its side in pixels.
    heads: of the attention.
    stem: 'patch' or 'conv'.
    head: 'gap', 'seqpool' or 'token'.
    mean: as `config.model` has it, of all channels or of each.
    std: the same.
    device: where it runs.
  """
  import torch

  put = lambda x: torch.tensor(np.array(x, np.float32)).to(device)
  flat, positions = {k: put(v) for k, v in weights.items()}, put(positions)
  mean, std = (put(np.reshape(v, (-1, 1, 1))) for v in (mean, std))
  layers = len({k.split('/')[1] for k in flat if 'encoderblock_' in k})
  functional = torch.nn.functional

  def linear(x, name):
    bias = flat[f'{name}/bias'].reshape(-1)
    matrix = flat[f'{name}/kernel'].reshape(-1, bias.numel())
    return functional.linear(x, matrix.T, bias)

  def norm(x, name):
    scale, bias = flat[f'{name}/scale'], flat[f'{name}/bias']
    return functional.layer_norm(x, scale.shape, scale, bias, 1e-6)

  def convolution(x, name, stride, padding=0):
    kernel = flat[f'{name}/kernel'].permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, flat[f'{name}/bias'], stride, padding)

  def tokens(x):
    if stem == 'patch':
      return convolution(x, 'embedding', patch).flatten(2).transpose(1, 2)
    for i, stride in enumerate(strides(patch)):
      if i:
        x = norm(x.movedim(1, -1), f'stem/norm_{i - 1}').movedim(-1, 1)
        x = functional.gelu(x, approximate='tanh')
      x = convolution(x, f'stem/conv_{i}', stride, padding=1)
    return x.flatten(2).transpose(1, 2)

  def pooled(x):
    if head == 'token':
      return x[:, 0]
    if head == 'gap':
      return x.mean(1)
    return ((x @ flat['seqpool/kernel']).softmax(1) * x).sum(1)

  def attention(x, name):
    parts = [
      linear(x, f'{name}/{part}').unflatten(-1, (heads, -1))
      for part in ('query', 'key', 'value')
    ]
    y = functional.scaled_dot_product_attention(
      *(part.transpose(1, 2) for part in parts)
    )
    return linear(y.transpose(1, 2).flatten(-2), f'{name}/out')

  class Vit(torch.nn.Module):
    def forward(self, x):
      x = tokens((x - mean) / std)
      if head == 'token':
        x = torch.cat([flat['cls'].expand(len(x), -1, -1), x], 1)
      x = x + positions
      for i in range(layers):
        block = f'Encoder/encoderblock_{i}'
        y = norm(x, f'{block}/LayerNorm_0')
        x = x + attention(y, f'{block}/SelfAttention')
        y = norm(x, f'{block}/LayerNorm_1')
        y = linear(y, f'{block}/Mlp/Dense_0')
        y = functional.gelu(y, approximate='tanh')
        x = x + linear(y, f'{block}/Mlp/Dense_1')
      x = norm(x, 'Encoder/encoder_norm')
      return linear(pooled(x), 'head')

  return Vit().eval()
