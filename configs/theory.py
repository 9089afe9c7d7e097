r"""When sparse models can be more robust: four problems with known answers.

Command:
  python -m vmoe_robust.main --config=configs/theory.py

It needs no checkpoint and no data; docs/theory.md derives each formula.

Hardware: any; two or three minutes on two CPU cores.

Expected: linear experts in cells, n 256 and d 1024: the dense Lipschitz
constant is 18.5, and 1.50, 2.19, 3.10 and 4.41 times the largest expert's for
E = 2, 4, 8 and 16 (means over 20 draws); orthogonal points exactly sqrt(E).
"""

from vmoe_robust import config as config_lib


def get_config():
  config = config_lib.default()
  config.mode = 'study'
  config.study.name = 'theory'
  return config
