r"""Whether the experts of V-MoEs on ImageNet can stand for each other.

V-MoE-S/32 and B/32 with 32 experts, one or two a token, pre-trained and
fine-tuned as in configs/experiments/imagenet_cost.py. The study substitution
replaces the chosen experts, on 5,000 images, clean and attacked by PGD.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/imagenet_redundancy.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR --list

and then part by part, on a pod each: docs/experiments.md.

Hardware: made for v5e pods of 16 to 32 chips.

Expected: not yet measured; what it costs at least is in
docs/results/rehearsals.md.
"""

from vmoe_robust import experiment
from vmoe_robust.experiment import imagenet

MODELS = imagenet.sparse(('S/32', 'B/32'), (32,), (1, 2))


def get_config():
  return experiment.describe(
    runs=imagenet.runs(MODELS),
    studies=[
      dict(
        name='substitution',
        base='configs/study.py',
        changes=dict(
          study=dict(name='substitution', substitution=dict(batch_size=256)),
          attack=dict(eps=(0.001, 1 / 255, 4 / 255)),
          data=dict(split='validation[:5000]'),
        ),
        of=tuple(model.name for model in MODELS),
      )
    ],
  )
