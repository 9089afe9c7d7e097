"""A V-MoE on the handwritten digits that scikit-learn ships.

Experts in blocks 1 and 3, one a token, so an image costs what it costs in its
dense twin, configs/digits_vit.py, but for the router.

Command:
  python -m vmoe_robust.main --config=configs/digits_moe.py

Hardware: 2 CPU cores, no accelerator.

Expected: 98 to 99% accuracy on the 360 test images, about 95% at eps 8/255,
80% at 16/255 and 15% at 32/255, in about a minute (Python 3.11, JAX 0.10.2:
98.3, 95.0, 79.2 and 16.7%; Python 3.12, JAX 0.12.0: 98.9, 96.4, 80.3, 18.6%).
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.DIGITS)
  config.model.update(presets.DIGITS_VIT)
  config.model.update(presets.SMALL_SPARSE)
  return config
