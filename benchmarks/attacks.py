"""Attacks beside the original AutoAttack and foolbox, in CPU-seconds.

  pip install torch foolbox git+https://github.com/fra31/auto-attack
  python benchmarks/attacks.py [--norm=Linf] [--images=250] [--rounds=1]

The same small ViT with the same weights in JAX and in PyTorch, the same digits,
the same budgets. Each takes one thread and its turn; a number is the
median over the rounds of the ratio of CPU-seconds of the process. Compiling is
left out by a first run of a few images, and given apart. The model's own passes
come first: no attack can be faster than they allow. A table for people, then
one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

# Before JAX is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_multi_thread_eigen=false')
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import subjects  # noqa: E402
import timing  # noqa: E402
import torch_vit  # noqa: E402
from absl import app, flags  # noqa: E402

from vmoe_robust.attacks import Budget, ensemble  # noqa: E402
from vmoe_robust.robustness.foreign import of_function  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))
from tests.autoattack_reference import Reference  # noqa: E402

_IMAGES = flags.DEFINE_integer('images', 250, 'How many digits.')
_ROUNDS = flags.DEFINE_integer('rounds', 1, 'Turns that each takes.')
_ATTACKS = flags.DEFINE_list(
  'attacks',
  ['apgd_ce', 'apgd_t', 'fab_t', 'square', 'autoattack'],
  'Which; Square has no L1 here, and is left out of both ensembles.',
)
_BATCH = flags.DEFINE_integer('batch', 125, 'Slots of ours; theirs has 250.')
# Radii of `tests/golden`, and foolbox's PGD.
NORMS = {
  'Linf': (0.1, 'LinfPGD'),
  'L2': (0.4, 'L2PGD'),
  'L1': (0.6, 'L1PGD'),
}
# Of single attacks, as the original's ensemble has them.
_BUDGETS_L1 = {'apgd_ce': dict(restarts=5), 'apgd_t': dict(targets=5)}
_NORM = flags.DEFINE_enum('norm', 'Linf', list(NORMS), 'Of the ball.')


def torch_model(reference: Reference):
  """The ViT of `Reference.logits` in PyTorch; images are NCHW."""
  weights = reference.weights()
  positions = weights['Encoder/posembed_input/pos_embedding'][0]
  return torch_vit.model(weights, positions, patch=2, heads=2)


def ours(
  reference: Reference, attack: str, images: np.ndarray, labels: np.ndarray
) -> Callable[[], float]:
  """What `robust_accuracy` does, with programs that are compiled once."""
  eps, norm = NORMS[_NORM.value][0], _NORM.value.lower()
  target = of_function(reference.logits, None, images.shape[1:])
  more = _BUDGETS_L1.get(attack, {}) if norm == 'l1' else {}
  budget = Budget(40 if attack == 'pgd' else 100, **more)
  chosen = ensemble(attack, norm, target.classes, budget)
  size = min(_BATCH.value, len(images))
  return subjects.attack(target, chosen, images, labels, norm, eps, size)


def theirs(model, attack: str, images, labels) -> float:
  """Robust accuracy by the original code."""
  import torch
  from autoattack import AutoAttack

  x = torch.tensor(images.transpose(0, 3, 1, 2))
  y = torch.tensor(labels, dtype=torch.long)
  norm = _NORM.value
  eps, _ = NORMS[norm]
  runner = AutoAttack(
    model, norm=norm, eps=eps, seed=0, verbose=False, device='cpu'
  )
  if attack != 'autoattack':
    runner.attacks_to_run = [attack.replace('_', '-')]
  elif norm == 'L1':
    runner.attacks_to_run.remove('square')
  with torch.no_grad():
    x_adv = runner.run_standard_evaluation(x, y, bs=250)
    return float((model(x_adv).argmax(1) == y).double().mean())


def foolbox(model, images, labels) -> float:
  """Robust accuracy by foolbox's PGD of 40 steps."""
  import foolbox as fb
  import torch

  wrapped = fb.PyTorchModel(model, bounds=(0, 1), device='cpu')
  x = torch.tensor(images.transpose(0, 3, 1, 2))
  y = torch.tensor(labels, dtype=torch.long)
  eps, name = NORMS[_NORM.value]
  attack = getattr(fb.attacks, name)(steps=40)
  _, _, fooled = attack(wrapped, x, y, epsilons=eps)
  return float(1 - fooled.double().mean())


def passes(reference: Reference, model, images, labels) -> dict[str, float]:
  """Ours to theirs of a forward pass and of a gradient by the images."""
  import torch

  x, y = jnp.asarray(images), jnp.asarray(labels)
  x_torch = torch.tensor(images.transpose(0, 3, 1, 2))
  y_torch = torch.tensor(labels, dtype=torch.long)

  def loss(x):
    logits = reference.logits(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).sum()

  def gradient():
    x = x_torch.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(x), y_torch, reduction='sum')
    torch.autograd.grad(loss, [x])

  forward, ours = jax.jit(reference.logits), jax.jit(jax.grad(loss))
  spent = timing.interleave(
    {
      'forward': lambda: forward(x).block_until_ready(),
      'their forward': torch.no_grad()(lambda: model(x_torch)),
      'gradient': lambda: ours(x).block_until_ready(),
      'their gradient': gradient,
    },
    9,
  )
  return {
    name: round(timing.ratio(spent, name, f'their {name}'), 3)
    for name in ('forward', 'gradient')
  }


def main(_):
  """Measures, prints the table and the line of JSON."""
  import torch

  torch.set_num_threads(1)
  reference, count = Reference(), _IMAGES.value
  images, labels = reference.images[:count], reference.labels[:count]
  model, accuracy = torch_model(reference), {}
  result = {'passes': passes(reference, model, images, labels)}
  print(
    f'{"attack":<12}{"ours":>8}{"theirs":>8}{"to theirs":>12}{"compile":>9}'
  )
  for name, ratio in result['passes'].items():
    print(f'{name:<28}{ratio:>12.2f}')
  for attack in [*_ATTACKS.value, 'pgd']:
    if attack == 'square' and _NORM.value == 'L1':
      continue
    own = ours(reference, attack, images, labels)
    other = partial(theirs, model, attack)
    if attack == 'pgd':
      other = partial(foolbox, model)
    begin = time.process_time()
    accuracy['ours'] = own()
    first = time.process_time() - begin
    accuracy['theirs'] = other(images, labels)

    spent = timing.interleave(
      {'ours': own, 'theirs': partial(other, images, labels)}, _ROUNDS.value
    )
    ratio = timing.ratio(spent, 'ours', 'theirs')
    compiling = first - min(spent['ours'])
    result[attack] = dict(
      accuracy, ratio=round(ratio, 3), compile_seconds=round(compiling, 1)
    )
    shown = (100 * accuracy[name] for name in ('ours', 'theirs'))
    print(
      f'{attack:<12}'
      + ''.join(f'{value:>7.1f}%' for value in shown)
      + f'{ratio:>12.2f}{compiling:>8.1f}s',
      flush=True,
    )
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(main)
