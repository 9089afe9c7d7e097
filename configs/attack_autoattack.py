r"""Attacks a saved checkpoint with AutoAttack (arXiv:2003.01690) at 8/255.

Command:
  python -m vmoe_robust.main --config=configs/attack_autoattack.py \
    --config.checkpoint=WORKDIR

WORKDIR is that of a training run. The standard version: APGD-CE, APGD-T, FAB-T
and Square, each on the images that the ones before left standing.
--config.attack.name=autoattack_plus or =apgd_ce+square runs others,
--config.attack.eps='(0.0156863, 0.0313725)' a sweep, --config.attack.norm=l2
with --config.attack.eps='(0.5,)' another norm. The same command goes on after
an interruption.

Hardware: any; an image that stands to the end costs about 1,900 gradients and
5,900 forward passes.

Expected: see docs/attacks.md for digits and CIFAR-10.
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'attack'
  config.data.update(name='', split='')  # as trained
  config.attack.update(
    name='autoattack',
    norm='linf',
    eps=(8 / 255,),
    steps=100,
    batch_size=256,
  )
  return config
