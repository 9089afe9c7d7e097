"""The models of arXiv:2210.10253 on ImageNet, as experiments train them."""

import dataclasses
from collections.abc import Mapping, Sequence

from vmoe_robust import presets

# Where E is 2 the paper balances by the GShard loss.
_GSHARD = dict(gshard_weight=0.01, importance_weight=0.0, load_weight=0.0)
# The published fine-tuning gives experts this much room.
_ROOM = 1.5


@dataclasses.dataclass(frozen=True)
class ModelOfPaper:
  """A dense ViT, or a V-MoE with experts in every second block.

  Attributes:
    size: such as 'B/32'.
    experts: of each sparse block; 0: dense.
    selected: experts a token.
  """

  size: str
  experts: int = 0
  selected: int = 0

  @property
  def name(self) -> str:
    """Such as 'vit_bpp32' or 'moe_b32_e8_k1'."""
    size = self.size.lower().replace('+', 'p').replace('/', '')
    if not self.experts:
      return f'vit_{size}'
    return f'moe_{size}_e{self.experts}_k{self.selected}'

  @property
  def router(self) -> dict:
    """What differs in `config.model.router`."""
    balance = _GSHARD if self.experts == 2 else {}
    return dict(selected=self.selected, **balance)


DENSE = tuple(
  ModelOfPaper(size)
  for size in ('S/32', 'B/32', 'B+/32', 'B++/32', 'B+++/32', 'L/32')
)


def sparse(
  sizes: Sequence[str], experts: Sequence[int], selected: Sequence[int]
) -> tuple[ModelOfPaper, ...]:
  """The V-MoEs of all these sizes, numbers of experts and of choices."""
  return tuple(
    ModelOfPaper(size, e, k)
    for size in sizes
    for e in experts
    for k in selected
  )


def runs(
  models: Sequence[ModelOfPaper], recipes: Mapping[str, Mapping] | None = None
) -> list[dict]:
  """Pre-training of each model at 224 pixels, and fine-tuning at 384.

  The paper pre-trains on JFT-300M, which is not public: this is on ImageNet
  alone. None is attacked when its training ends.

  Args:
    models: which ones.
    recipes: endings of names, and what each changes in the paper's
      fine-tuning; by default that alone, as ''.
  """
  recipes = {'': {}} if recipes is None else recipes
  return [
    run
    for model in models
    for run in (
      _pretrained(model),
      *(_finetuned(model, *recipe) for recipe in recipes.items()),
    )
  ]


def _pretrained(model: ModelOfPaper) -> dict:
  base, changes = model.name, {}
  if model.size == 'L/32':  # as configs/vit_l16.py, on larger patches
    base, changes = 'vit_l16', dict(patch=32)
  if model.experts:
    base = '_'.join(model.name.split('_')[:2])
    changes = dict(experts=model.experts, router=model.router)
  return dict(
    name=f'pretrain_{model.name}',
    base=f'configs/{base}.py',
    changes=dict(model=changes, attack=dict(at_end=False)),
  )


def _finetuned(model: ModelOfPaper, ending: str, recipe: Mapping) -> dict:
  changes = dict(presets.model_size(model.size), experts=model.experts)
  if model.experts:
    changes['router'] = dict(model.router, capacity_factor=_ROOM)
  else:
    changes['moe_every'] = 0
  attack = dict(recipe.get('attack', {}), at_end=False)
  return dict(
    name=model.name + ending,
    base='configs/finetune_384.py',
    changes=dict(recipe, model=changes, attack=attack),
    start=f'pretrain_{model.name}',
  )
