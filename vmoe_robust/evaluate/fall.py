"""What the hosts know of an ensemble at work: who fell, and what is where."""

import dataclasses

import numpy as np

# Of `Fall.fallen`: no number of a stage.
STANDS, WRONG, CORRUPT = -1, -2, -3


@dataclasses.dataclass
class Fall:
  """What the attacks did at one radius."""

  eps: float
  fallen: np.ndarray  # the stage in which an example fell, or why none
  robust_after: dict[str, float]  # accuracy after each attack
  seconds: dict[str, float]  # of each attack, in this process


@dataclasses.dataclass
class State:
  """What the hosts know, the same on each."""

  fall: Fall
  index: np.ndarray  # the example in each slot, or -1
  tried: np.ndarray = None  # the attempt in each slot
  stage: int = 0
  attempt: int = 0  # of the queue
  position: int = 0
  tick: int = 0
  resumed: bool = False  # slots are those of a snapshot

  def __post_init__(self):
    if self.tried is None:
      self.tried = np.full(len(self.index), -1, np.int32)

  def enter(self, number: int):
    """Begins a stage."""
    self.stage, self.attempt, self.position = number, 0, 0

  def arrays(self) -> dict[str, np.ndarray]:
    """As arrays, which `read` reads."""
    fall, numbers = self.fall, ('stage', 'attempt', 'position', 'tick')
    after, seconds = (
      np.array([list(d), list(d.values())], object).astype(str)
      for d in (fall.robust_after, fall.seconds)
    )
    return {
      **{name: np.asarray(getattr(self, name)) for name in numbers},
      **dict(index=self.index, tried=self.tried, fallen=fall.fallen),
      'eps': np.asarray(fall.eps),
      **dict(after=after, seconds=seconds),
    }

  @classmethod
  def read(cls, found: dict[str, np.ndarray]) -> 'State':
    """From what `arrays` returned."""
    pairs = lambda name: {k: float(v) for k, v in found[name].T.tolist()}
    fall = Fall(
      float(found['eps']),
      found['fallen'],
      pairs('after'),
      pairs('seconds'),
    )
    numbers = ('stage', 'attempt', 'position', 'tick')
    return cls(
      fall,
      found['index'],
      found['tried'],
      **{name: int(found[name]) for name in numbers},
      resumed=True,
    )


def unique(name: str, names: dict) -> str:
  """A list may have an attack twice."""
  again = sum(other.split('#')[0] == name for other in names)
  return f'{name}#{again + 1}' if again else name
