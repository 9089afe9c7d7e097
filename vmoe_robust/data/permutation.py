"""Grain's shuffle of a whole epoch at once.

Grain finds the example at one position, which takes 2 to 20 microseconds and
is too slow for a fast device. Its permutation is a cipher of few bits whose
results are enciphered again until they are in range ("Ciphers with Arbitrary
Finite Domains", Black and Rogaway, 2002). The cipher has four rounds of Simon
(eprint.iacr.org/2013/404) with round keys from C++'s `std::seed_seq`.
`order.Epochs` compares samples with grain, and asks grain itself should they
ever differ.
"""

import numpy as np
from jaxtyping import Int, UInt32

_ROUNDS = 4
_LEAST_BITS = 16
_WORD = 0xFFFFFFFF


def permutation(examples: int, seed: int) -> Int[np.ndarray, 'examples']:
  """The number of the example at each position of an epoch.

  Args:
    examples: how many there are, below 2^32.
    seed: of the epoch, of 32 bits.
  """
  if examples == 1:
    return np.zeros(1, np.int64)
  # As in grain: of 2^even + 1 examples one comes twice and one never, in each
  # epoch others.
  bits = int(np.ceil(np.log2(examples - 1)))
  bits = max(bits + bits % 2, _LEAST_BITS)
  cipher = _encipher(np.arange(1 << bits, dtype=np.uint32), bits // 2, seed)
  found = cipher[np.arange(examples) % len(cipher)]
  outside = np.flatnonzero(found >= examples)
  while len(outside):
    found[outside] = cipher[found[outside]]
    outside = outside[found[outside] >= examples]
  return found.astype(np.int64)


def _encipher(
  values: UInt32[np.ndarray, 'values'], half: int, seed: int
) -> UInt32[np.ndarray, 'values']:
  """Each value of 2 * `half` bits as another one."""
  mask = np.uint32((1 << half) - 1)

  def turned(x, by):
    return ((x << by) | (x >> (half - by))) & mask

  left, right = values >> half, values & mask
  for key in _keys(seed):
    mixed = (turned(right, 1) & turned(right, 8)) ^ turned(right, 2)
    left, right = right, left ^ mixed ^ (np.uint32(key) & mask)
  return (left << half) | right


def _keys(seed: int) -> list[int]:
  """What `std::seed_seq{seed}` generates ([rand.util.seedseq] of C++17)."""
  n = _ROUNDS
  out = [0x8B8B8B8B] * n
  fold = lambda x: x ^ (x >> 27)
  for k in range(n):
    near = out[k] ^ out[(k + 1) % n] ^ out[k - 1]
    first = 1664525 * fold(near) & _WORD
    second = first + {0: 1, 1: 1 + seed}.get(k, k) & _WORD
    out[(k + 1) % n] = out[(k + 1) % n] + first & _WORD
    out[(k + 2) % n] = out[(k + 2) % n] + second & _WORD
    out[k] = second
  for k in range(n):
    near = out[k] + out[(k + 1) % n] + out[k - 1] & _WORD
    first = 1566083941 * fold(near) & _WORD
    second = first - k & _WORD
    out[(k + 1) % n] ^= first
    out[(k + 2) % n] ^= second
    out[k] = second
  return out
