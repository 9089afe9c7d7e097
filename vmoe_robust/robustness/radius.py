"""What the hosts know of an attack at one radius, the same on each of them."""

import dataclasses
import json

import numpy as np
from jaxtyping import Bool, Int

from vmoe_robust.files import to_json
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import Clean, Columns
from vmoe_robust.robustness.work import Pair

# Of `Radius.fallen`, where it is no number of a stage.
STANDS, WRONG, CORRUPT = -1, -2, -3


@dataclasses.dataclass
class Left:
  """Images that left their slots, in the rows of a batch that was judged.

  Args:
    index: the examples' numbers, -1 where there is none.
    attempt: the run on each.
    value: of the loss that was attacked, at x_adv.
    stage: number of the stage; -1: x_adv is the image itself.
  """

  index: Int[np.ndarray, 'batch']
  attempt: Int[np.ndarray, 'batch']
  value: np.ndarray
  stage: int


@dataclasses.dataclass
class Radius:
  """Who fell, what the judge found, and where the attack is.

  Args:
    eps: in units of pixels in [0, 1].
    clean: what the model says of the images as they are.
    together: consecutive images that are judged as one group.
    columns: of the judge, of the x_adv that counts.
    blind: of each stage that follows a gradient, the images that had none in
      most of its steps.
  """

  eps: float
  clean: Clean
  together: int = 1
  columns: Columns = dataclasses.field(default_factory=dict)
  blind: Columns = dataclasses.field(default_factory=dict)
  robust_after: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  stage: int = -1  # -1: not begun
  spent: float = 0.0  # seconds of this stage, before it was cut short
  attempt: int = 0  # of the queue, as is `position`
  position: int = 0
  tick: int = 0
  again: list[Pair] = dataclasses.field(default_factory=list)  # were cut short

  def __post_init__(self):
    right, mask = self.clean.right, self.clean.mask
    self.fallen = np.where(right, STANDS, WRONG).astype(np.int16)
    self.fallen[~mask] = CORRUPT
    # Of the x_adv that counts: whether an attack found it, whether it is
    # broken, and its loss.
    self.attacked = np.zeros(len(mask), bool)
    self.broken = np.zeros(len(mask), bool)
    self.value = np.full(len(mask), -np.inf, np.float32)
    # Of images that fell, the attempt of the stage that it is of.
    self.won = np.zeros(len(mask), np.int32)
    # Of this stage, steps that were taken, and those with a gradient.
    self.steps, self.led = np.zeros((2, len(mask)), np.int32)

  def enter(self, stage: int) -> None:
    """Begins a stage."""
    self.stage, self.attempt, self.position, self.again = stage, 0, 0, []
    self.spent = 0.0
    self.steps[:] = self.led[:] = 0

  def accuracy(self) -> float:
    """The share of images that are right, by what the judge found."""
    return float((~self.broken[self.clean.mask]).mean())

  def count(self, index: np.ndarray, steps: int, led: np.ndarray) -> None:
    """Notes attempts that came to their end.

    Args:
      index: the images' numbers, one as often as it had attempts.
      steps: of an attempt.
      led: the steps of each that had a gradient to follow.
    """
    np.add.at(self.steps, index, steps)
    np.add.at(self.led, index, led)

  def end_stage(self, name: str, seconds: float, follows: bool) -> None:
    """Notes what a stage left.

    Args:
      name: of the attack.
      seconds: that it took.
      follows: whether it follows a gradient.
    """
    name = _unique(name, self.robust_after)
    self.robust_after[name] = self.accuracy()
    self.seconds[name] = seconds
    if follows:
      self.blind[name] = 2 * self.led < self.steps

  def record(
    self,
    left: Left,
    columns: Columns,
    stays: bool,
    until: str = 'wrong',
  ) -> Bool[np.ndarray, 'batch']:
    """Keeps what the judge found, if it is the worst so far for an image.

    An image that is broken stays broken, and one that is taken for its target
    stays so. Of images that leave when they are broken, the first x_adv counts
    until one breaks it, and of those the one of the earliest attempt, whichever
    came out first; of images that stay to the end, the one of the highest loss.
    A group counts as a whole: the x_adv in which more of its images are broken.

    Args:
      left: the images.
      columns: of the judge, in the same rows.
      stays: see `Stage`.
      until: see `Stage`.

    Returns:
      The rows that were kept.
    """
    rows = np.flatnonzero(left.index >= 0)
    index = left.index[rows]
    top, broken = columns['prediction_after'][rows], np.zeros(len(left.index))
    broken = broken.astype(bool)
    broken[rows] = ~is_right(top, self.clean.label[index])
    harm, before = broken.astype(int), self.broken.astype(int)
    if until == 'target':  # which is no class of the image's own
      target = self.clean.ranked[:, 0]
      harm[rows] += top == target[index]
      if 'prediction_after' in self.columns:
        now = self.columns['prediction_after']
        before += self.broken & (now == target)
    if self.together > 1:
      kept = self._of_groups(left, broken, harm, before)
    else:
      kept = self._of_images(left, broken, harm, before, stays)
    self._store(left, columns, kept)
    out = np.zeros(len(left.index), bool)
    out[kept] = True
    return out

  def _of_images(self, left, broken, harm, before, stays) -> np.ndarray:
    """The rows to keep, one an image at most."""
    kept = {}
    rows = np.flatnonzero(left.index >= 0)
    # Of several attempts in one batch, the earlier comes first.
    for row in rows[np.argsort(left.attempt[rows], kind='stable')]:
      i, value = left.index[row], left.value[row]
      worse = harm[row] > before[i]
      if stays and harm[row] == before[i]:
        worse = value > self.value[i]
      elif not stays and broken[row] and self.fallen[i] == left.stage:
        worse = left.attempt[row] < self.won[i]
      if worse or not self.attacked[i]:
        kept[i], before[i] = row, harm[row]
        self.won[i] = left.attempt[row]
        self._set(i, broken[row], value, left.stage)
    return np.array(list(kept.values()), int)

  def _of_groups(self, left, broken, harm, before) -> np.ndarray:
    """The rows of whole groups."""
    kept = []
    for first in range(0, len(left.index), self.together):
      rows = np.arange(first, min(first + self.together, len(left.index)))
      rows = rows[left.index[rows] >= 0]
      index = left.index[rows]
      now, then = harm[rows].sum(), before[index].sum()
      first_one = not self.attacked[index].any()
      if len(rows) and (now > then or (first_one and now == then)):
        kept += rows.tolist()
        for row in rows:
          self._set(left.index[row], broken[row], left.value[row], left.stage)
    return np.array(kept, int)

  def _set(self, i, broken, value, stage):
    self.broken[i], self.value[i] = broken, value
    if stage >= 0:
      self.attacked[i] = True
      if self.fallen[i] != WRONG:
        self.fallen[i] = stage if broken else STANDS

  def _store(self, left, columns, kept):
    index = left.index[kept]
    for name, column in columns.items():
      if name not in self.columns:
        shape = (len(self.broken), *column.shape[1:])
        self.columns[name] = np.zeros(shape, column.dtype)
      self.columns[name][index] = column[kept]

  def arrays(self) -> Columns:
    """All that `read` needs, as arrays of its own."""
    about = {name: getattr(self, name) for name in _ABOUT}
    each = {name: getattr(self, name).copy() for name in _EACH}
    for group in _GROUPS:
      found = getattr(self, group)
      each |= {f'{group} {k}': v.copy() for k, v in found.items()}
    return each | {'about': np.array(to_json(about))}

  @classmethod
  def read(cls, found: Columns, clean: Clean, together: int) -> 'Radius':
    """From what `arrays` returned."""
    about = json.loads(str(found['about']))
    about['again'] = [tuple(pair) for pair in about['again']]
    out = cls(clean=clean, together=together, **about)
    for name in _EACH:
      if name in found:  # an older version stored fewer
        setattr(out, name, found[name])
    for name in found:
      group, _, key = name.partition(' ')
      if group in _GROUPS:
        getattr(out, group)[key] = found[name]
    return out


_ABOUT = (
  *('eps', 'robust_after', 'seconds', 'stage', 'attempt', 'position'),
  *('tick', 'again', 'spent'),
)
_EACH = ('fallen', 'attacked', 'broken', 'value', 'won', 'steps', 'led')
_GROUPS = ('columns', 'blind')


def _unique(name: str, names: dict) -> str:
  """A list may have an attack twice."""
  again = sum(other.split('#')[0] == name for other in names)
  return f'{name}#{again + 1}' if again else name
