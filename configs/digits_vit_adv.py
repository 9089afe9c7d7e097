r"""A ViT on the digits of scikit-learn, trained to resist 16/255.

The model of configs/digits_vit.py, the dense twin of configs/digits_moe_adv.py.

Command:
  python -m vmoe_robust.main --config=configs/digits_vit_adv.py

Hardware: 2 CPU cores, no accelerator.

Expected: docs/training.md.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.DIGITS)
  config.update(presets.DIGITS_ADVERSARIAL)
  config.model.update(presets.DIGITS_VIT)
  return config
