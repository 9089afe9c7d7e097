r"""Adversarial training on ImageNet at 4/255: dense against V-MoE.

ViT-S/32 and B/32 against V-MoEs of 32 experts, one a token, pre-trained as in
configs/experiments/imagenet_cost.py, then fine-tuned twice: as the paper does,
and against attacks by the recipe of configs/finetune_vmoe_s32_adv.py. Each is
attacked by AutoAttack at 4/255 on the first 5,000 images, as many as
RobustBench takes, and by PGD over the paper's radii on 50,000.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/imagenet_adversarial.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR --list

and then part by part, on a pod each: docs/experiments.md.

Hardware: made for v5e pods of 32 to 64 chips.

Expected: not yet measured; what it costs at least is in
docs/results/rehearsals.md.
"""

from vmoe_robust import experiment, presets
from vmoe_robust.experiment import imagenet

MODELS = (
  *imagenet.DENSE[:2],
  *imagenet.sparse(('S/32', 'B/32'), (32,), (1,)),
)
RECIPES = {'': {}, '_adv': presets.FINETUNE_ADVERSARIAL}


def get_config():
  judged = tuple(m.name + end for m in MODELS for end in RECIPES)
  return experiment.describe(
    runs=imagenet.runs(MODELS, RECIPES),
    attacks=[
      dict(
        name='autoattack',
        base='configs/attack_autoattack.py',
        changes=dict(
          attack=dict(eps=(4 / 255,)), data=dict(split='validation[:5000]')
        ),
        of=judged,
      ),
      dict(name='pgd', base='configs/attack_pgd.py', of=judged),
    ],
    comparisons=[
      (f'moe_{size}_e32_k1{end}', f'vit_{size}{end}')
      for size in ('s32', 'b32')
      for end in RECIPES
    ],
  )
