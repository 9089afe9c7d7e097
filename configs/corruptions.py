r"""Judges a saved checkpoint under the 15 common corruptions of ImageNet-C.

Command:
  python -m vmoe_robust.main --config=configs/corruptions.py \
    --config.checkpoint=WORKDIR

WORKDIR is that of a training run. The model and the data are the run's own;
--config.data.split='test[:1000]' takes a part. Frost is drawn unless
--config.study.corruptions.frost_dir=FROST names the authors' photographs.

Hardware: any; 76 forward passes an image, and on the host about 1 second of a
CPU core for 75 corruptions of 224 x 224 pixels.

Expected: depends on the checkpoint; docs/results/corruptions.md has digits.
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'study'
  config.study.name = 'corruptions'
  config.data.update(name='', split='')  # as trained
  config.study.corruptions.batch_size = 256
  return config
