"""Sparse Mixture-of-Experts vision models and how robust they are.

In a notebook:

  classifier = vmoe_robust.load('runs/digits_moe')
  classifier(images)  # logits
  vmoe_robust.robust_accuracy(classifier, images, labels, eps=8 / 255).accuracy
"""

import importlib

__all__ = ['load', 'robust_accuracy']


def __getattr__(name: str):
  # On demand: to read a configuration takes no model.
  if name in __all__:
    return getattr(
      importlib.import_module('vmoe_robust.evaluate.notebook'), name
    )
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
