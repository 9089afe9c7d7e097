r"""Attacks Google's V-MoE-B/16 for ImageNet at 384 pixels with AutoAttack.

Command:
  python -m vmoe_robust.main --config=configs/attack_vmoe_b16_384.py \
    --config.data.dir=TFDS_DIR

vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012:
8 experts in every odd block, trained on ImageNet-21k, then ImageNet.
--config.data.split='validation[:5000]' attacks a part, --config.attack.name=pgd
is PGD, and with --config.num_selected=1 a token gets one expert, not two.

Hardware: any; 143.7 GFLOP an image forward. An image that stands to the end
costs about 1,900 gradients and 5,900 forward passes at each radius.

Expected: not yet measured. Published for clean images, squeezed into a square
rather than cropped: 85.6% (mean of 3 runs).
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.ATTACK_OFFICIAL)
  config.checkpoint = presets.OFFICIAL_B16 + '_ft_ilsvrc2012'
  config.data.resize = 384
  return config
