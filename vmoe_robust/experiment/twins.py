"""The paper's questions (arXiv:2210.10253) on small data.

What configs/experiments/digits_paper.py and cifar10_paper.py share: a dense
model, a dense one of as many parameters, and sparse ones of the same active
FLOPs, each trained naturally and against PGD; and what is asked of each.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.experiment.description import describe

_EXPERTS = (2, 4, 8, 16)
_STUDIES = {  # and whether they attack
  'routing_change': True,
  'substitution': True,
  'frozen_routing': True,
  'jacobian': False,
}


def describe_twins(
  dense: str,
  sparse: str,
  wide: int,
  batch_size: int,
  eps: Sequence[float],
  part: Mapping[str, object],
) -> ConfigDict:
  """Models of two configs, their attacks, studies and comparisons.

  Args:
    dense: the config of the dense model, without ending; that of its
      adversarial training has `_adv` behind it.
    sparse: the same of the V-MoE of 8 experts.
    wide: hidden units of the dense model with as many parameters as that.
    batch_size: of attacks.
    eps: radii of the studies; the last one is AutoAttack's.
    part: of `config.data`, for AutoAttack and the studies.
  """
  models = {
    'dense': (dense, {}),
    'dense_wide': (dense, dict(mlp=wide)),
    **{f'moe_e{e}': (sparse, dict(experts=e)) for e in _EXPERTS},
    'moe_e8_k2': (sparse, dict(router=dict(selected=2))),
  }
  runs = [
    dict(
      name=name + end,
      base=f'configs/{base}{end}.py',
      changes=dict(model=changes, attack=dict(at_end=False)),
    )
    for end in ('', '_adv')
    for name, (base, changes) in models.items()
  ]
  sparse_runs = tuple(
    name + end for end in ('', '_adv') for name in models if 'moe' in name
  )
  attack = dict(batch_size=batch_size)
  return describe(
    runs=runs,
    attacks=[
      dict(
        name='pgd',
        base='configs/attack_pgd.py',
        changes=dict(attack=attack),
      ),
      dict(
        name='autoattack',
        base='configs/attack_autoattack.py',
        changes=dict(attack=dict(attack, eps=(eps[-1],)), data=part),
      ),
    ],
    studies=[
      dict(
        name=name,
        base='configs/study.py',
        changes=dict(
          study=dict(name=name),
          attack=dict(attack, eps=eps, steps=20) if attacks else {},
          data=part,
        ),
        of=sparse_runs,
      )
      for name, attacks in _STUDIES.items()
    ],
    comparisons=[
      pair
      for end in ('', '_adv')
      for pair in (
        *((f'moe_e{e}{end}', f'dense{end}') for e in _EXPERTS),
        (f'moe_e8_k2{end}', f'dense{end}'),
        (f'moe_e8{end}', f'dense_wide{end}'),
      )
    ],
    seeds=(0, 1, 2),
  )
