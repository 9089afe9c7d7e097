"""A ViT on the handwritten digits that scikit-learn ships.

The dense twin of configs/digits_moe.py.

Command:
  python -m vmoe_robust.main --config=configs/digits_vit.py

Hardware: 2 CPU cores, no accelerator.

Expected: not yet measured.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.DIGITS)
  config.model.update(presets.DIGITS_VIT)
  return config
