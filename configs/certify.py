r"""Certifies a saved checkpoint in L2 by randomised smoothing.

Command:
  python -m vmoe_robust.main --config=configs/certify.py \
    --config.checkpoint=WORKDIR

WORKDIR is that of a training run, best one on noisy images; model and data are
the run's own. --config.study.certificates.every=20 takes every 20th example.

Hardware: any; 10,100 forward passes an image.

Expected: depends on the checkpoint; docs/results/corruptions.md has digits.
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'study'
  config.study.name = 'certificates'
  config.data.update(name='', split='')  # as trained
  config.study.certificates.update(sigma=0.25, n0=100, n=10_000, batch_size=512)
  return config
