"""Sparse Mixture-of-Experts vision models and how robust they are.

In a notebook:

  classifier = vmoe_robust.load('runs/digits_moe')
  classifier(images)  # logits
  vmoe_robust.robust_accuracy(classifier, images, labels, eps=8 / 255).accuracy
"""

import importlib

# On demand: to read a configuration takes no model.
_HOMES = {
  'load': 'vmoe_robust.evaluate.load',
  'robust_accuracy': 'vmoe_robust.robustness.api',
}
__all__ = list(_HOMES)


def __getattr__(name: str):
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
