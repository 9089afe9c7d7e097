"""What AutoAttack's own code did, and the model that it attacked."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

FILE = pathlib.Path(__file__).parent / 'golden' / 'autoattack.npz'


class Reference:
  """Numbers of the original code, and the model that it attacked."""

  def __init__(self):
    self._file = np.load(FILE)
    digits = load_digits()
    self.labels = digits.target[:1000].astype(np.int32)
    # As the pipeline makes them, from 0 to 255.
    images = np.round(digits.images[:1000, ..., None] * 255 / 16)
    self.images = images.astype(np.float32) / np.float32(255)

  def __getitem__(self, name):
    return self._file[name]

  def weights(self):
    """Those of the model, by name."""
    names = [n for n in self._file.files if n.startswith('weights/')]
    return {n.removeprefix('weights/'): self[n] for n in names}

  def flags(self, name):
    return np.unpackbits(self[f'flags/{name}']).astype(bool)

  def logits(self, x):
    """A ViT of two blocks by hand, in the type of x: ours has float32 parts."""
    weights = lambda name: jnp.asarray(self[f'weights/{name}'], x.dtype)

    def dense(x, name, form='...d,de->...e'):
      return jnp.einsum(form, x, weights(f'{name}/kernel')) + weights(
        f'{name}/bias'
      )

    def norm(x, name):
      x = x - x.mean(-1, keepdims=True)
      x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
      return x * weights(f'{name}/scale') + weights(f'{name}/bias')

    x = (2 * x - 1).reshape(-1, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5)
    kernel = weights('embedding/kernel').reshape(4, 32)
    x = x.reshape(-1, 16, 4) @ kernel + weights('embedding/bias')
    x = x + weights('Encoder/posembed_input/pos_embedding')
    for number in range(2):
      block = f'Encoder/encoderblock_{number}'
      y = norm(x, f'{block}/LayerNorm_0')
      attention = f'{block}/SelfAttention'
      query, key, value = (
        dense(y, f'{attention}/{name}', 'btd,dhe->bthe')
        for name in ('query', 'key', 'value')
      )
      scores = jnp.einsum('bqhe,bkhe->bhqk', query, key) / 4
      y = jnp.einsum('bhqk,bkhe->bqhe', jax.nn.softmax(scores), value)
      x = x + dense(y, f'{attention}/out', 'bqhe,hed->bqd')
      y = norm(x, f'{block}/LayerNorm_1')
      y = jax.nn.gelu(dense(y, f'{block}/Mlp/Dense_0'))
      x = x + dense(y, f'{block}/Mlp/Dense_1')
    return dense(norm(x, 'Encoder/encoder_norm').mean(1), 'head')
