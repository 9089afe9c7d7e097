r"""A small ViT on CIFAR-10, trained against PGD at 8/255.

The model of configs/cifar10_vit.py, the dense twin of
configs/cifar10_moe_adv.py.

Command:
  python -m vmoe_robust.main --config=configs/cifar10_vit_adv.py \
    --workdir=WORKDIR --config.data.dir=TFDS_DIR

Hardware: any accelerator; 2 CPU cores take 13/3 of the time of
configs/cifar10_vit.py.

Expected: not yet measured as it is; 2,000 steps of a one-step objective are in
docs/results/cifar10.md.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.CIFAR10)
  config.update(presets.CIFAR10_ADVERSARIAL)
  config.model.update(presets.CIFAR10_VIT)
  return config
