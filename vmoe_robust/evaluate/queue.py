"""Which image is attacked next, and which attempt on it."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Queue:
  """The attempts of one stage on the images that stand, in order.

  All first attempts come before the second ones. An image that falls gets no
  further attempt. What is next depends on nothing but what has happened, so a
  queue that is stored and read goes on the same.
  """

  standing: np.ndarray  # bool, of all images
  attempts: int
  attempt: int = 0
  position: int = 0  # of the image that is next

  def take(self, room: int) -> list[tuple[int, int]]:
    """At most so many pairs of an image and an attempt."""
    found = []
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
    return (ahead + self.position).tolist()

  def left(self) -> int:
    """Attempts that are still to come if no image falls."""
    if self.attempt >= self.attempts:
      return 0
    later = (self.attempts - self.attempt - 1) * int(self.standing.sum())
    return later + int(self.standing[self.position :].sum())

  def _after(self, position):
    here = np.flatnonzero(self.standing[position:])
    return int(here[0]) + position if len(here) else None
