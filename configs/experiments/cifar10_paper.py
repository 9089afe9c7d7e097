r"""The paper's questions (arXiv:2210.10253) on CIFAR-10.

As configs/experiments/digits_paper.py, on the models of configs/cifar10_vit.py
and configs/cifar10_moe.py. PGD is on all test images, AutoAttack at 8/255 and
the studies on the first 1,000.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/cifar10_paper.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR

Hardware: any accelerator.

Expected: not yet measured.
"""

from vmoe_robust import experiment

# The hidden units of configs/cifar10_moe.py, spread over six blocks.
WIDE = (3 * 256 + 3 * 8 * 256) // 6
ATTACK = dict(batch_size=256)
PART = dict(split='test[:1000]')
MODELS = {
  'dense': ('cifar10_vit', {}),
  'dense_wide': ('cifar10_vit', dict(mlp=WIDE)),
  **{f'moe_e{e}': ('cifar10_moe', dict(experts=e)) for e in (2, 4, 8, 16)},
  'moe_e8_k2': ('cifar10_moe', dict(router=dict(selected=2))),
}


def get_config():
  runs = [
    dict(
      name=name + end,
      base=f'configs/{base}{end}.py',
      changes=dict(model=changes, attack=dict(at_end=False)),
    )
    for end in ('', '_adv')
    for name, (base, changes) in MODELS.items()
  ]
  names = [run['name'] for run in runs]
  sparse = tuple(name for name in names if name.startswith('moe'))
  studied = dict(ATTACK, eps=(2 / 255, 8 / 255), steps=20)
  return experiment.describe(
    runs=runs,
    attacks=[
      dict(
        name='pgd',
        base='configs/attack_pgd.py',
        changes=dict(attack=ATTACK),
      ),
      dict(
        name='autoattack',
        base='configs/attack_autoattack.py',
        changes=dict(attack=dict(ATTACK, eps=(8 / 255,)), data=PART),
      ),
    ],
    studies=[
      dict(
        name=name,
        base='configs/study.py',
        changes=dict(study=dict(name=name), attack=attack, data=PART),
        of=sparse,
      )
      for name, attack in (
        ('routing_change', studied),
        ('substitution', studied),
        ('frozen_routing', studied),
        ('jacobian', {}),
      )
    ],
    comparisons=[
      pair
      for end in ('', '_adv')
      for pair in (
        *((f'moe_e{e}{end}', f'dense{end}') for e in (2, 4, 8, 16)),
        (f'moe_e8_k2{end}', f'dense{end}'),
        (f'moe_e8{end}', f'dense_wide{end}'),
      )
    ],
    seeds=(0, 1, 2),
  )
