r"""What a training step may minimise, on handwritten digits.

The V-MoE of configs/digits_moe_adv.py, half as long: once for each
`config.train.objective.name`, at the same radius, with as many steps of the
attack where an objective has several. Each is attacked on the 360 test images
at 16/255 by the two APGD of AutoAttack, and compared with PGD's image by image.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/digits_objectives.py

Hardware: 2 CPU cores, no accelerator.

Expected: 92.5 to 94.7% at 16/255 of the six that attack, 44.4% of natural;
docs/training.md. 61 minutes on one core.
"""

from vmoe_robust import experiment

SINGLE = dict(steps=10)  # the field's default: they have one step
OBJECTIVES = {
  'natural': dict(eps=8 / 255, steps=10),  # the defaults: it has no attack
  'pgd': {},
  'trades': {},
  'mart': {},
  'fast': SINGLE,
  'nfgsm': SINGLE,
  'advmoe': {},
}


def get_config():
  return experiment.describe(
    runs=[
      dict(
        name=name,
        base='configs/digits_moe_adv.py',
        changes=dict(
          train=dict(steps=1600, objective=dict(fields, name=name)),
          attack=dict(at_end=False),
        ),
      )
      for name, fields in OBJECTIVES.items()
    ],
    attacks=[
      dict(
        name='apgd',
        base='configs/attack_autoattack.py',
        changes=dict(
          attack=dict(name='apgd_ce+apgd_t', eps=(16 / 255,), batch_size=120)
        ),
      )
    ],
    comparisons=[(name, 'pgd') for name in OBJECTIVES if name != 'pgd'],
  )
