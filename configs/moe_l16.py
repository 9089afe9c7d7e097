r"""V-MoE-L/16 with 32 experts on ImageNet at 224 pixels, from scratch.

Experts in every second block, two a token. Its dense twin is
configs/vit_l16.py.

Command:
  python -m vmoe_robust.main --config=configs/moe_l16.py --workdir=WORKDIR \
    --config.data.dir=TFDS_DIR

Hardware: made for a v5e-128; 162.9 GFLOP an image forward, so about
530 v5e chip-hours at half of the peak. Both by arithmetic, not measured.

Expected: not yet measured. arXiv:2210.10253 pre-trains on JFT-300M, which is
not public; these are its models on ImageNet alone.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.PRETRAIN)
  config.model.update(presets.model_size('L/16'), compute_dtype='bfloat16')
  config.model.update(presets.SPARSE)
  config.train.optimizer.learning_rate = presets.PEAK_LEARNING_RATES['L/16']
  config.train.remat = 'blocks'
  return config
