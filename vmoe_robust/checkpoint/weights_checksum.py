"""A checksum of weights themselves, whatever files and devices hold them."""

import json
import math

import google_crc32c
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped, UInt32

from vmoe_robust.checkpoint.trees import flat
from vmoe_robust.distributed import fetch

# Two sums of 32 bits a leaf, which begin with other numbers.
_BEGIN = (0x9E3779B9, 0x7F4A7C15)


def weights_checksum(tree: PyTree) -> str:
  """Eight hexadecimal digits of all names, types, shapes and bits of a tree.

  Files of equal weights differ: their parts have drawn names, and how many
  there are depends on the processes that wrote them. This is the same on any
  mesh, for sums of whole numbers know no order. Each process of a pod has to
  ask for it, with the same tree. The devices read their arrays once, and eight
  bytes a leaf come to the host. A TPU needs no memory for it (0.2 MB for 32
  experts of V-MoE-B/16, as compiled), a CPU twice that of the largest array.
  """
  leaves = flat(tree)
  sums = fetch([_sums(leaf) for leaf in leaves.values()])
  found = {
    name: [str(leaf.dtype), *leaf.shape, *own.tolist()]
    for (name, leaf), own in zip(leaves.items(), sums, strict=True)
  }
  text = json.dumps(found, sort_keys=True)
  return f'{google_crc32c.value(text.encode()):08x}'


@jax.jit
def _sums(x: Shaped[Array, '...']) -> UInt32[Array, '2']:
  bits = _bits(x.reshape(x.shape or (1,)))
  # Positions modulo 2**32 are enough to tell that two values changed places.
  strides = [math.prod(bits.shape[i + 1 :]) % 2**32 for i in range(bits.ndim)]
  place = sum(
    jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i) * jnp.uint32(stride)
    for i, stride in enumerate(strides)
  )
  mixed = [_mix(bits ^ _mix(place + jnp.uint32(begin))) for begin in _BEGIN]
  return jnp.stack([one.sum(dtype=jnp.uint32) for one in mixed])


def _bits(x):
  """Whole numbers of 32 bits: two of 64 bits, one of fewer."""
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  if x.dtype.itemsize < 4:
    kind = {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _mix(x):
  """Each bit of the result depends on all: MurmurHash3's last step of 32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
