"""Which image is attacked next, which attempt on it, and in how many slots."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

# An example's number, and the number of the run on it.
Pair = tuple[int, int]


@dataclasses.dataclass
class Queue:
  """The attempts of one stage on the images that stand, in order.

  All first attempts come before the second ones. An image that falls gets no
  further attempt; those before the one that broke it, which began earlier and
  are not at their end, go on, for the earliest that breaks it counts. What is
  next depends on nothing but what has happened, so a queue that is stored and
  read goes on the same.
  """

  standing: Bool[np.ndarray, 'examples']
  limit: Int[np.ndarray, 'examples']  # of what fell, the attempt that broke it
  attempts: int
  attempt: int = 0
  position: int = 0  # of the image that is next
  again: list[Pair] = dataclasses.field(default_factory=list)  # come first

  def take(self, room: int) -> list[Pair]:
    """At most so many pairs of an image and an attempt."""
    found = []
    while self.again and len(found) < room:
      pair = self.again.pop(0)
      if self.is_wanted(*pair):
        found.append(pair)
    while len(found) < room and self.attempt < self.attempts:
      after = self._after(self.position)
      if after is None:
        self.attempt, self.position = self.attempt + 1, 0
      else:
        found.append((after, self.attempt))
        self.position = after + 1
    return found

  def coming(self, count: int) -> list[int]:
    """Images that are likely to be next."""
    ahead = np.flatnonzero(self.standing[self.position :])[:count]
    again = [index for index, _ in self.again[:count]]
    return (again + (ahead + self.position).tolist())[:count]

  def left(self) -> int:
    """Attempts that are still to come if no image falls."""
    again = sum(bool(self.is_wanted(*pair)) for pair in self.again)
    if self.attempt >= self.attempts:
      return again
    later = (self.attempts - self.attempt - 1) * int(self.standing.sum())
    return again + later + int(self.standing[self.position :].sum())

  def is_wanted(
    self, index: np.ndarray | int, attempt: np.ndarray | int
  ) -> np.ndarray | np.bool_:
    """Whether an attempt on an image is to come to its end."""
    return self.standing[index] | (attempt < self.limit[index])

  def _after(self, position):
    here = np.flatnonzero(self.standing[position:])
    return int(here[0]) + position if len(here) else None


@dataclasses.dataclass
class Batches:
  """The attempts of one stage on images that stay together, batch by batch.

  A batch is of consecutive examples. It is left out if none of its images
  stands. All attempts on a batch come before the next batch.
  """

  standing: Bool[np.ndarray, 'examples']
  attempts: int
  size: int
  attempt: int = 0
  position: int = 0  # of the batch that is next
  before: tuple[int, int] = (0, 0)  # attempt and position of the last one

  def take(self, room: int) -> list[Pair]:
    """The next batch, if there is room for it, -1 in padding; else nothing."""
    while room == self.size and self.position * self.size < len(self.standing):
      self.before = self.attempt, self.position
      first = self.position * self.size
      rows = np.arange(first, first + self.size)
      inside = rows < len(self.standing)
      attempt = self.attempt
      self.attempt += 1
      if self.attempt == self.attempts:
        self.attempt, self.position = 0, self.position + 1
      if self.standing[rows[inside]].any():
        rows = np.where(inside, rows, -1)
        return [(int(index), attempt) for index in rows]
    return []

  def coming(self, count: int) -> list[int]:
    """Images that are likely to be next."""
    first = self.position * self.size
    return list(range(first, min(first + count, len(self.standing))))

  def left(self) -> int:
    """Attempts on images that are still to come, batches that fell included."""
    rest = max(len(self.standing) - self.position * self.size, 0)
    return rest * self.attempts - min(rest, self.size) * self.attempt


def fitting(need: int, shards: int, most: int) -> int:
  """The least number of slots that holds `need` images.

  Sizes are powers of two, and halfway between them, times the number of
  devices that share the batch: at most a third is empty, and a batch of 256
  has 15 sizes.

  Args:
    need: images, 1 or more.
    shards: devices that share the batch.
    most: the batch size, a multiple of `shards`; it is a size too.
  """
  each = -(-need // shards)
  power = 1
  while 2 * power <= each:
    power *= 2
  sizes = [size for size in (power, power * 3 // 2, 2 * power) if size >= each]
  return min(sizes[0] * shards, most)
