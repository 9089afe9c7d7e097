r"""How attacks change the routing of V-MoEs on ImageNet, over the radius.

V-MoE-S/32 and B/32 with 32 experts, one or two a token, pre-trained and
fine-tuned as in configs/experiments/imagenet_cost.py. The study routing_change
attacks 5,000 images by PGD at the paper's 26 radii; frozen_routing tells at
four of them whether the changed experts did harm.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/imagenet_routing.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR --list

and then part by part, on a pod each: docs/experiments.md.

Hardware: made for v5e pods of 16 to 32 chips.

Expected: not yet measured; what it costs at least is in
docs/results/rehearsals.md.
"""

from vmoe_robust import experiment, presets
from vmoe_robust.experiment import imagenet

MODELS = imagenet.sparse(('S/32', 'B/32'), (32,), (1, 2))
RADII = {
  'routing_change': presets.PAPER_EPS,
  'frozen_routing': (0.001, 1 / 255, 4 / 255, 8 / 255),
}


def get_config():
  return experiment.describe(
    runs=imagenet.runs(MODELS),
    studies=[
      dict(
        name=name,
        base='configs/study.py',
        changes=dict(
          study={'name': name, name: dict(batch_size=256)},
          attack=dict(eps=radii),
          data=dict(split='validation[:5000]'),
        ),
        of=tuple(model.name for model in MODELS),
      )
      for name, radii in RADII.items()
    ],
  )
