r"""A V-MoE of 15 billion parameters on ImageNet at 224 pixels, from scratch.

The largest model of arXiv:2106.05974: patches of 14 pixels, 48 blocks, 32
experts in every second one, two a token, 14.7 billion parameters. The paper
does not give its widths; these are the ones of ViT-g/14 (arXiv:2106.04560), but
for an MLP a little wider, so that the parameters are as many.

Command:
  python -m vmoe_robust.main --config=configs/moe_h14.py --workdir=WORKDIR \
    --config.data.dir=TFDS_DIR

Hardware: made for 512 chips of v5p, where it fits (compiled, not run; see
docs/results/rehearsals.md); 881.5 GFLOP an image forward. One ImageNet is too
small for this model; it is here to be rehearsed, and as a start for larger
data.

Expected: not yet measured. The paper pre-trains on JFT-300M, which is not
public.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.update(presets.PRETRAIN)
  config.model.update(presets.model_size('H+/14'), compute_dtype='bfloat16')
  config.model.update(presets.SPARSE)
  config.train.optimizer.learning_rate = presets.PEAK_LEARNING_RATES['L/16']
  config.train.remat = 'blocks'
  config.mesh.fsdp = True
  return config
