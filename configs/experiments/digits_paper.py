r"""The paper's questions (arXiv:2210.10253) on handwritten digits.

The ViT of configs/digits_vit.py against V-MoEs of the same active FLOPs with 2,
4, 8 and 16 experts (one a token), against one with two experts a token and a
ViT of its cost, and against a ViT with as many parameters as the V-MoE of 8
experts; at 8 experts, soft and expert-choice routers, and three controls that
learn no routes (frozen as drawn, a hash of the position, equal gates). Each is
trained naturally and against PGD. All are attacked on the 360 test images by
AutoAttack at 16/255, natural ones at 8/255 too; the ViT and the V-MoE of 8
experts also in L2 and L1 and, with the wide ViT, by PGD over the paper's radii.
That V-MoE is studied, and so is the Jacobian of all but those with other
routers.

Command:
  python -m vmoe_robust.experiment --config=configs/experiments/digits_paper.py

--config.seeds='(0,1,2,3,4)' trains five seeds in place of two, and
--config.select="('dense','moe_e8')" takes two of the models. Run again with
more, it does what is missing.

Hardware: 2 CPU cores, no accelerator.

Expected: some 6 CPU-hours with AVX-512, an evening, and 17 with AVX2. What was
measured: docs/results/digits.md.
"""

from vmoe_robust.experiment.twins import describe_twins


def get_config():
  return describe_twins(
    dense='digits_vit',
    sparse='digits_moe',
    # The experts' hidden units, spread over four blocks: 2 x 128 of the dense
    # blocks and 2 x 8 x 128 of the sparse ones.
    wide=(2 * 128 + 2 * 8 * 128) // 4,
    wide_k2=(2 * 128 + 2 * 2 * 128) // 4,
    batch_size=120,
    eps=(8 / 255, 16 / 255),
    others=dict(l2=0.3, l1=1.0),
    part={},
    seeds=(0, 1),
  )
