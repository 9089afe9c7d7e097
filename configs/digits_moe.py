"""A V-MoE on the handwritten digits that scikit-learn ships.

Experts in blocks 1 and 3, one a token, so an image costs what it costs in its
dense twin, configs/digits_vit.py, but for the router.

Command:
  python -m vmoe_robust.main --config=configs/digits_moe.py

Hardware: 2 CPU cores, no accelerator.

Expected: not yet measured.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.DIGITS)
  config.model.update(presets.DIGITS_VIT)
  config.model.update(presets.SMALL_SPARSE)
  return config
