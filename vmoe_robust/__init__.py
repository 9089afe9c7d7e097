"""Sparse Mixture-of-Experts vision models and how robust they are.

In a notebook:

  classifier = vmoe_robust.load('runs/digits_moe')
  classifier(images)  # logits
  vmoe_robust.robust_accuracy(classifier, images, labels, eps=8 / 255).accuracy
  vmoe_robust.read_results('runs/digits_moe')  # numbers and records of a run
  vmoe_robust.compare('runs/digits_moe', 'runs/digits_vit')  # their report

What does not fit raises `vmoe_robust.UserError`, which says what to change.
"""

import importlib

from vmoe_robust.errors import UserError

_MODULES = {
  'compare': 'vmoe_robust.report.page',
  'load': 'vmoe_robust.evaluate.classifier',
  'read_results': 'vmoe_robust.report.results',
  'robust_accuracy': 'vmoe_robust.robustness.api',
}
__all__ = ['UserError', 'compare', 'load', 'read_results', 'robust_accuracy']


def __getattr__(name: str):
  # On demand: to read a configuration takes no model.
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
