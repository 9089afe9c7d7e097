r"""Attacks Google's V-MoE-S/32 for ImageNet at 384 pixels with AutoAttack.

Command:
  python -m vmoe_robust.main --config=configs/attack_vmoe_s32_384.py \
    --config.data.dir=TFDS_DIR

vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012:
8 experts in the last two odd blocks, trained on ImageNet alone.
--config.data.split='validation[:5000]' attacks a part, --config.attack.name=pgd
is PGD, and with --config.num_selected=1 a token gets one expert, not two.

Hardware: any; 9.3 GFLOP an image forward. An image that stands to the end
costs about 1,900 gradients and 5,900 forward passes at each radius.

Expected: not yet measured. Published for clean images, squeezed into a square
rather than cropped: 75.9% (mean of 3 runs).
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.ATTACK_OFFICIAL)
  config.checkpoint = presets.OFFICIAL_S32 + '_ft_ilsvrc2012'
  config.data.resize = 384
  return config
