r"""When sparse models can be more robust: four problems with known answers.

Command:
  python -m vmoe_robust.main --config=configs/theory.py

It needs no checkpoint and no data; docs/theory.md derives each formula.

Hardware: any; about two minutes on two CPU cores.

Expected: linear experts in cells, n 256 and d 1024: the dense Lipschitz
constant is 18.4, and 1.50, 2.18, 3.10 and 4.39 times the largest expert's for
E = 2, 4, 8 and 16 (means over 20 draws); orthogonal points exactly sqrt(E).
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'study'
  config.study.name = 'theory'
  return config
