r"""Asks one question of a saved checkpoint; docs/studies.md lists them.

Command:
  python -m vmoe_robust.main --config=configs/study.py \
    --config.study.name=routing_change --config.checkpoint=WORKDIR

WORKDIR is that of a training run. The model and the data are the run's own;
--config.data.split='test[:1000]' takes a part. Studies that attack do it as
config.attack says, by default with 40 steps of PGD in Linf.

Hardware: any.

Expected: depends on the checkpoint; docs/studies.md has the digits' numbers.
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'study'
  config.study.name = 'routing_change'
  config.data.update(name='', split='')  # as trained
  return config
