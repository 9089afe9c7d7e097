r"""The paper's questions (arXiv:2210.10253) on CIFAR-10.

As configs/experiments/digits_paper.py, on the models of configs/cifar10_vit.py
and configs/cifar10_moe.py, trained longer: naturally for 102 epochs with mixup,
and for 84 epochs against single steps (N-FGSM, arXiv:2202.01181), at 5/3 of the
cost of natural ones. PGD is on all test images, AutoAttack at 8/255 and the
studies on the first 1,000.

Command:
  python -m vmoe_robust.experiment \
    --config=configs/experiments/cifar10_paper.py \
    --workdir=WORKDIR --config.data_dir=TFDS_DIR

Hardware: any accelerator.

Expected: not yet measured.
"""

from vmoe_robust.experiment.twins import describe_twins


def get_config():
  return describe_twins(
    dense='cifar10_vit',
    sparse='cifar10_moe',
    # The experts' hidden units, spread over six blocks.
    wide=(3 * 256 + 3 * 8 * 256) // 6,
    wide_k2=(3 * 256 + 3 * 2 * 256) // 6,
    batch_size=256,
    eps=(2 / 255, 8 / 255),
    others=dict(l2=0.5, l1=12.0),
    part=dict(split='test[:1000]'),
    recipes={
      '': dict(
        data=dict(mixup=0.3),
        train=dict(steps=20_000, batch_size=256),
        eval=dict(every_steps=4000),
        save=dict(every_steps=4000),
      ),
      '_adv': dict(
        train=dict(
          steps=16_000, batch_size=256, objective=dict(name='nfgsm', steps=10)
        ),
        eval=dict(every_steps=4000),
        save=dict(every_steps=4000),
      ),
    },
    seeds=(0, 1, 2),
  )
