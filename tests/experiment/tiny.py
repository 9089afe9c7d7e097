"""An experiment for the tests: two models of one block, a few steps each."""

from vmoe_robust import experiment

MODEL = dict(layers=1, hidden=16, heads=2, mlp=16)
TRAIN = dict(steps=40, batch_size=32, log_every=1, ema=0.0)
JUDGED = dict(
  attack=dict(eps=(0.1,), steps=2, batch_size=40),
  data=dict(split='test[:40]'),
)


def training(name, base, **model):
  return dict(
    name=name,
    base=base,
    changes=dict(
      model=MODEL | model,
      train=TRAIN,
      save=dict(every_steps=2),
      attack=dict(at_end=False),
    ),
  )


def get_config():
  return experiment.describe(
    runs=[
      training('dense', 'configs/digits_vit.py'),
      training('moe', 'configs/digits_moe.py', moe_every=1),
    ],
    attacks=[dict(name='pgd', base='configs/attack_pgd.py', changes=JUDGED)],
    studies=[
      dict(
        name='routing',
        base='configs/study.py',
        changes=dict(JUDGED, study=dict(name='routing_change')),
        of=('moe',),
      )
    ],
    comparisons=[('moe', 'dense')],
  )
