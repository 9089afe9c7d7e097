r"""Fine-tunes the official V-MoE-S/32 on ImageNet against attacks at 4/255.

The recipe of arXiv:2206.07288 for small transformers, on the checkpoint of
configs/finetune_vmoe_s32.py, at the same 384 pixels: one step of PGD, a radius
that rises over the first 10 of 30 epochs, AdamW with a decay of 0.5.

Command:
  python -m vmoe_robust.main --config=configs/finetune_vmoe_s32_adv.py \
    --workdir=WORKDIR --config.data.dir=TFDS_DIR

Hardware: made for a v5e-64 or larger; a step takes 5/3 of the FLOPs of a
natural one. Not measured.

Expected: not yet measured.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.FINETUNE)
  config.update(presets.FINETUNE_OFFICIAL)
  config.update(presets.FINETUNE_ADVERSARIAL)
  config.model.update(presets.model_size('S/32'), moe_last=2)
  config.init_from = presets.OFFICIAL_S32
  return config
