r"""Attacks a saved checkpoint with PGD in Linf over the radii of the paper.

Command:
  python -m vmoe_robust.main --config=configs/attack_pgd.py \
    --config.checkpoint=WORKDIR

WORKDIR is that of a training run. The model and the data are the run's own;
setting config.model is refused. --config.data.split='test[:1000]' attacks a
part, and --config.attack.name=paper runs the paper's own, weaker protocol.

Hardware: any; 26 radii cost about 2,200 forward passes an image.

Expected: depends on the checkpoint; not yet measured.
"""

from vmoe_robust import config as config_lib
from vmoe_robust import presets


def get_config():
  config = config_lib.default()
  config.mode = 'attack'
  config.data.update(name='', split='')  # as trained
  config.attack.update(
    name='pgd',
    norm='linf',
    eps=presets.PAPER_EPS,
    steps=40,
    random_start=True,
    batch_size=256,
  )
  return config
