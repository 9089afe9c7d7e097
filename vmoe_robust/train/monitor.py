"""Robust accuracy while training, and the alarm when it collapses.

Adversarial training with few steps can suddenly learn to defeat its own weak
attack: accuracy under a stronger one falls to nothing while the loss goes on
improving (catastrophic overfitting, arXiv:2001.03994). A short PGD on a fixed
batch of held-out images notices it.
"""

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust.config import default, eps_name
from vmoe_robust.data import Source
from vmoe_robust.data.rows import examples
from vmoe_robust.distributed import fetch
from vmoe_robust.errors import BadState
from vmoe_robust.evaluate import adversarial
from vmoe_robust.mesh import batch_sharding, batch_shards
from vmoe_robust.mesh.batch import BatchRows
from vmoe_robust.models import Model
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import as_floats


class Monitor:
  """Attacks the same held-out images again and again."""

  def __init__(
    self, model: Model, config: ConfigDict, held_out: Source, best: float = 0.0
  ):
    """Reads and keeps the images: at most `examples` of 224 x 224 x 3 bytes.

    Args:
      model: without what saves a training's memory.
      config: of the run; `config.train.monitor` says how.
      held_out: the validation part.
      best: the highest robust accuracy so far, of a run that is resumed.
    """
    settings = config.train.monitor
    attacked = config.copy_and_resolve_references()
    attacked.attack = default().attack  # whatever the run attacks with
    attacked.attack.update(
      name='pgd',
      norm=config.attack.norm,
      eps=(settings.eps,),
      steps=settings.steps,
      restarts=1,
    )
    self._settings, self.best = settings, best
    self.name = f'robust_accuracy/{eps_name(settings.eps)}'
    self._batch = _placed(
      *examples(held_out, config.data, settings.examples), model.module.mesh
    )
    forward = adversarial.plain(model)
    attack = adversarial.attack(forward, attacked)

    def judge(params, batch):
      images = as_floats(batch['image'])
      x_adv = attack(params, images, batch, np.float32(settings.eps))
      logits, _ = forward(params, x_adv, batch['mask'], ())
      right = is_right(classes(logits), batch['label']) & batch['mask']
      return right.sum() / batch['mask'].sum()

    self._judge = jax.jit(judge)

  def __call__(self, params: PyTree, step: int) -> dict[str, float]:
    """Robust accuracy now, by its name.

    Args:
      params: the weights that are evaluated.
      step: of the training, for what is said.

    Raises:
      BadState: it fell by more than `max_fall` since its best, and
        `config.train.monitor.on_fall` is 'stop'.
    """
    now = float(fetch(self._judge(params, self._batch)))
    settings, best = self._settings, self.best
    self.best = max(best, now)
    if best - now > settings.max_fall:
      said = (
        f'robust accuracy at config.train.monitor.eps={settings.eps:.4g} fell '
        f'from {best:.1%} to {now:.1%} by step {step}: the training has '
        'learnt to defeat its own attack (catastrophic overfitting)'
      )
      if settings.on_fall == 'stop':
        raise BadState(
          f'{said}; train against a stronger attack, with a smaller eps or a '
          "longer ramp, or set config.train.monitor.on_fall='warn' to go on"
        )
      logging.warning('%s', said)
    return {self.name: now}


def _placed(images, labels, mesh) -> dict:
  """A batch on the devices, padded so that they share it evenly."""
  shards = batch_shards(mesh)
  size = -(-len(images) // shards) * shards
  pad = lambda x: np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))
  mask = np.arange(size) < len(images)
  rows = BatchRows(batch_sharding(mesh), size)
  batch = {
    'image': pad(images),
    'label': pad(labels),
    'mask': mask,
    'index': np.arange(size, dtype=np.int32),
  }
  return {name: rows.spread(x) for name, x in batch.items()}
