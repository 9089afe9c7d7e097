"""Compiles a configuration for a pod that is not there, and reads the result.

`python -m vmoe_robust.rehearse --config=configs/moe_b16.py
--topology=v5p:4x4x4`. The programs are those of a run; only their inputs are
shapes instead of arrays.
"""

from vmoe_robust.rehearse.rehearsal import rehearse
from vmoe_robust.rehearse.show import show

__all__ = ['rehearse', 'show']
