r"""Which recipe of adversarial training is best for which model, on digits.

Seven recipes, for the V-MoE of configs/digits_moe_adv.py and its dense twin:
does the one that both are compared with (20/255, images moved by a pixel, 3,200
steps) favour one of them? The last tenth of the training images is held out,
and attacked by PGD of 20 steps at 16/255; the test images are not looked at.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/digits_recipes.py

--config.select="('dense_pgd20_moved',)" takes one of them, and
--config.seeds='(0,1,2)' trains three in place of one.

Hardware: 2 CPU cores, no accelerator.

Expected: 86.8% at 16/255 of the ViT and 91.0% of the V-MoE, both with that one;
docs/training.md. 83 minutes on one core with AVX2.
"""

from vmoe_robust import experiment

# Objective, radius in 1/255, pixels by which images are moved, steps.
RECIPES = {
  'pgd16': ('pgd', 16, 0, 1600),
  'pgd16_moved': ('pgd', 16, 1, 1600),
  'pgd20': ('pgd', 20, 0, 1600),
  'pgd20_moved': ('pgd', 20, 1, 1600),
  'pgd24_moved': ('pgd', 24, 1, 1600),
  'pgd20_moved_long': ('pgd', 20, 1, 3200),
  'trades16_moved': ('trades', 16, 1, 1600),
}
MODELS = {
  'dense': 'configs/digits_vit_adv.py',
  'moe': 'configs/digits_moe_adv.py',
}
OURS = 'pgd20_moved_long'


def get_config():
  return experiment.describe(
    runs=[
      dict(name=f'{model}_{name}', base=base, changes=_changes(*recipe))
      for model, base in MODELS.items()
      for name, recipe in RECIPES.items()
    ],
    attacks=[
      dict(
        name='pgd',
        base='configs/attack_pgd.py',
        changes=dict(
          data=dict(split='train[90%:]'),
          attack=dict(eps=(16 / 255,), steps=20, batch_size=144),
        ),
      )
    ],
    comparisons=[(f'moe_{name}', f'dense_{name}') for name in RECIPES]
    + [
      (f'{model}_{name}', f'{model}_{OURS}')
      for model in MODELS
      for name in RECIPES
      if name != OURS
    ],
  )


def _changes(objective: str, radius: int, pad: int, steps: int) -> dict:
  return dict(
    data=dict(
      split='train[:90%]',
      eval_split='train[90%:]',
      validation=0.0,
      crop='pad' if pad else 'none',
      pad=pad,
    ),
    train=dict(
      steps=steps,
      objective=dict(name=objective, eps=radius / 255),
      monitor=dict(eps=0.0),
    ),
    attack=dict(at_end=False),
  )
