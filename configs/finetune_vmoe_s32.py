r"""Fine-tunes Google's V-MoE-S/32 on ImageNet at 384 pixels.

Command:
  python -m vmoe_robust.main --config=configs/finetune_vmoe_s32.py \
    --workdir=WORKDIR --config.data.dir=TFDS_DIR

It starts from vmoe_s32_last2_ilsvrc2012_randaug_light1, without the head, which
is of a sigmoid loss. What is not as published: docs/experiments.md.

Hardware: made for a v5e-32; 9.3 GFLOP an image forward, so about 0.8 v5e
chip-hours at half of the peak. Both by arithmetic, not measured.

Expected: not yet measured. Published: 75.9% (mean of 3 runs).
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.FINETUNE)
  config.update(presets.FINETUNE_OFFICIAL)
  config.model.update(presets.model_size('S/32'), moe_last=2)
  config.init_from = presets.OFFICIAL_S32
  return config
