r"""Error against cost on ImageNet: more experts, or a larger dense model?

arXiv:2210.10253's list: six dense ViTs from S/32 to L/32, V-MoE-S/32 and B/32
with 32 experts, one or two a token, and V-MoE-B/32 with 2 to 16. Each is
pre-trained at 224 pixels, fine-tuned at 384, and attacked over the paper's 26
radii, by PGD and by the paper's own protocol, on 50,000 images.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/imagenet_cost.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR --list

and then part by part, on a pod each: docs/experiments.md. The other experiments
on ImageNet share its runs if they have its --workdir.

Hardware: made for v5e pods of 16 to 64 chips; docs/experiments.md has the cost
of each model.

Expected: not yet measured; what it costs at least is in
docs/results/rehearsals.md.
"""

from vmoe_robust import experiment
from vmoe_robust.experiment import imagenet

SPARSE = (
  *imagenet.sparse(('S/32', 'B/32'), (32,), (1, 2)),
  *imagenet.sparse(('B/32',), (2, 4, 8, 16), (1,)),
)


def get_config():
  models = (*imagenet.DENSE, *SPARSE)
  judged = tuple(model.name for model in models)
  # Fine-tuned at the same cost, and the larger dense models.
  larger = ('vit_bp32', 'vit_bpp32', 'vit_bppp32', 'vit_l32')
  return experiment.describe(
    runs=imagenet.runs(models),
    attacks=[
      dict(name='pgd', base='configs/attack_pgd.py', of=judged),
      dict(
        name='paper',
        base='configs/attack_pgd.py',
        changes=dict(attack=dict(name='paper')),
        of=judged,
      ),
    ],
    comparisons=[
      *((m.name, f'vit_{m.size[0].lower()}32') for m in SPARSE),
      *(('moe_b32_e32_k1', name) for name in larger),
    ],
  )
