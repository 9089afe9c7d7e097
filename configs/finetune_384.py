r"""Fine-tunes on ImageNet at 384 pixels, as arXiv:2210.10253 does.

Command:
  python -m vmoe_robust.main --config=configs/finetune_384.py \
    --workdir=WORKDIR --config.data.dir=TFDS_DIR --config.init_from=PRETRAINED

PRETRAINED is the workdir of configs/moe_b32.py. For another model set the
fields of config.model that differ, such as --config.model.patch=16, or 0
experts. Where E is 2 the paper uses the GShard loss instead:
--config.model.experts=2 --config.model.router.gshard_weight=0.01
--config.model.router.importance_weight=0 --config.model.router.load_weight=0

Hardware: made for a v5e-32; about 3 v5e chip-hours at half of the peak by
arithmetic, not measured.

Expected: not yet measured.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.FINETUNE)
  config.model.update(presets.model_size('B/32'), compute_dtype='bfloat16')
  config.model.update(presets.SPARSE)
  # The published fine-tuning configs of V-MoE give experts this much room.
  config.model.router.capacity_factor = 1.5
  return config
