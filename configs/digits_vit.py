"""A ViT on the handwritten digits that scikit-learn ships.

The dense twin of configs/digits_moe.py.

Command:
  python -m vmoe_robust.main --config=configs/digits_vit.py

Hardware: 2 CPU cores, no accelerator.

Expected: 98.1% accuracy on the 360 test images, 95.6% at eps 8/255, 81.9% at
16/255 and 11.1% at 32/255, in under a minute (Python 3.11, JAX 0.10.2).
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.DIGITS)
  config.model.update(presets.DIGITS_VIT)
  return config
