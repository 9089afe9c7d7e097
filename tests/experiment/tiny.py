"""An experiment for the tests: the same model of one block under two names."""

from vmoe_robust import experiment

TRAINED = dict(
  model=dict(layers=1, hidden=16, heads=2, mlp=16, experts=2, moe_every=1),
  train=dict(steps=40, batch_size=32, log_every=1, ema=0.0),
  save=dict(every_steps=2),
  attack=dict(at_end=False),
)
JUDGED = dict(
  attack=dict(eps=(0.1,), steps=2),
  data=dict(split='test[:40]'),
)


def get_config():
  return experiment.describe(
    runs=[
      dict(name=name, base='configs/digits_moe.py', changes=TRAINED)
      for name in ('killed', 'twin')
    ],
    attacks=[dict(name='pgd', base='configs/attack_pgd.py', changes=JUDGED)],
    studies=[
      dict(
        name='routing',
        base='configs/study.py',
        changes=dict(JUDGED, study=dict(name='routing_change')),
        of=('killed',),
      )
    ],
    comparisons=[('killed', 'twin')],
    measures=[
      dict(
        name='changed',
        study='routing',
        condition='eps 25.5/255',
        number=('selected', 'encoderblock_0'),
        unit='%',
        against='pgd',
      )
    ],
  )
