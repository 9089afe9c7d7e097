"""The paper's questions (arXiv:2210.10253) on small data.

What configs/experiments/digits_paper.py and cifar10_paper.py share: a dense
model, a dense one of as many parameters, sparse ones of the same active FLOPs,
other routers and controls, each trained naturally and against PGD; and what is
asked of each.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ml_collections import ConfigDict

from vmoe_robust.experiment.description import describe
from vmoe_robust.report.table import radius

_EXPERTS = (2, 4, 8, 16)
# Other routers over 8 experts. The last three are controls that learn no
# routes: what is a learnt route worth? (The fourth, which is told the class,
# classifies nothing; the study `router_controls` has it.)
_ROUTERS = {
  'soft': dict(name='soft'),
  'expert_choice': dict(name='expert_choice'),
  'frozen': dict(frozen=True),
  'hash': dict(name='hash'),
  'uniform': dict(gate='uniform'),
}
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
  wide_k2: int,
  batch_size: int,
  eps: Sequence[float],
  others: Mapping[str, float],
  part: Mapping[str, object],
  seeds: Sequence[int],
  recipes: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> ConfigDict:
  """Models of two configs, their attacks, studies and comparisons.

  Args:
    dense: the config of the dense model, without ending; that of its
      adversarial training has `_adv` behind it.
    sparse: the same of the V-MoE of 8 experts.
    wide: hidden units of the dense model with as many parameters as that.
    wide_k2: of the one that costs as much as that with two experts a token.
    batch_size: of attacks.
    eps: two radii in Linf; all are attacked at the second, and models that
      were trained naturally at the first too.
    others: radii in other norms, in which the main pair is attacked.
    part: of `config.data`, for AutoAttack and the studies.
    seeds: of each model.
    recipes: changes to all configs of natural training, by the name '', and
      of adversarial training, '_adv'.
  """
  models = {
    'dense': (dense, {}),
    'dense_wide': (dense, dict(mlp=wide)),
    'dense_k2': (dense, dict(mlp=wide_k2)),
    **{f'moe_e{e}': (sparse, dict(experts=e)) for e in _EXPERTS},
    'moe_e8_k2': (sparse, dict(router=dict(selected=2))),
    **{f'moe_{n}': (sparse, dict(router=r)) for n, r in _ROUTERS.items()},
  }
  runs = [
    dict(
      name=name + end,
      base=f'configs/{base}{end}.py',
      changes=dict(
        recipes.get(end, {}), model=changes, attack=dict(at_end=False)
      ),
    )
    for end in ('', '_adv')
    for name, (base, changes) in models.items()
  ]
  attack = dict(batch_size=batch_size)

  def autoattack(name, of, **changes):
    return dict(
      name=name,
      base='configs/attack_autoattack.py',
      changes=dict(attack=attack | changes, data=part),
      of=of,
    )

  # Dense models and those with learnt routes of a token's own.
  usual = ('dense', 'dense_wide', 'dense_k2', 'moe_e8_k2')
  usual += tuple(f'moe_e{e}' for e in _EXPERTS)

  def both(*names):
    return tuple(name + end for end in ('', '_adv') for name in names)

  return describe(
    runs=runs,
    attacks=[
      autoattack('autoattack', (), eps=eps[1:]),
      autoattack('autoattack_small', tuple(models), eps=eps[:1]),
      dict(
        name='pgd',
        base='configs/attack_pgd.py',
        changes=dict(attack=attack),
        of=both('dense', 'dense_wide', 'moe_e8'),
      ),
      *(
        autoattack(
          f'autoattack_{norm}',
          both('dense', 'moe_e8'),
          norm=norm,
          eps=(radius,),
        )
        for norm, radius in others.items()
      ),
    ],
    studies=[
      dict(
        name=name,
        base='configs/study.py',
        changes=dict(
          study=dict(name=name),
          attack=dict(eps=eps, steps=20) if attacks else {},
          data=part,
        ),
        of=both(*usual) if name == 'jacobian' else both('moe_e8'),
      )
      for name, attacks in _STUDIES.items()
    ],
    unions=[
      dict(
        name='union',
        of=('autoattack', *(f'autoattack_{norm}' for norm in others)),
      )
    ],
    comparisons=[
      pair
      for end in ('', '_adv')
      for pair in (
        *((f'moe_e{e}{end}', f'dense{end}') for e in _EXPERTS),
        (f'moe_e8_k2{end}', f'dense{end}'),
        (f'moe_e8_k2{end}', f'dense_k2{end}'),
        (f'moe_e8{end}', f'dense_wide{end}'),
        *((f'moe_{n}{end}', f'moe_e8{end}') for n in _ROUTERS),
      )
    ],
    measures=_measures(both, usual, eps),
    seeds=seeds,
  )


def _measures(both, usual: Sequence[str], eps: Sequence[float]) -> list[dict]:
  """What routing does to the main model, and the Jacobian of all."""
  under = f'eps {radius("linf", eps[1])}'
  found = [
    dict(
      name='routing_damage',
      study='frozen_routing',
      number=('compared', under, 'routing_damage_of_free_attack', 'difference'),
      unit='points',
    ),
    dict(
      name='random_experts',
      study='substitution',
      condition='clean, random, all',
      number=('against_unchanged', 'difference'),
      unit='points',
    ),
  ]
  for end in ('', '_adv'):
    for term in ('total', 'expert', 'gate', 'sum_of_gates'):
      found.append(
        dict(
          name=f'jacobian_{term}{end}',
          study='jacobian',
          condition='clean',
          number=('margin', term),
          of=tuple(f'{name}{end}' for name in usual),
          against='autoattack',
        )
      )
  return found
