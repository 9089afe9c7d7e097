"""Experiments: many runs from one configuration, and how they compare.

`python -m vmoe_robust.experiment --config=configs/experiments/NAME.py`; a file
there returns `describe(...)`. docs/experiments.md says how to write one.
"""

from vmoe_robust.experiment.description import describe

__all__ = ['describe']
