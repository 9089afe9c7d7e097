"""As many images stand as after AutoAttack's own code; more: benchmarks/."""

import numpy as np
import pytest

from vmoe_robust import robust_accuracy

IMAGES = 250


@pytest.mark.slow
def test_apgd_leaves_as_many_as_the_original(reference):
  found = robust_accuracy(
    reference.logits,
    reference.images[:IMAGES],
    reference.labels[:IMAGES],
    attack='apgd_ce',
    eps=float(reference['eps/Linf']),
    progress=False,
    batch_size=128,
  )
  theirs = [
    reference.flags(f'Linf/apgd-ce/seed{seed}')[:IMAGES] for seed in range(3)
  ]
  clean = reference.flags('clean')[:IMAGES]
  assert found.clean_accuracy == clean.mean()
  # Their seeds differ from each other by as much.
  counts = [flags.sum() for flags in theirs]
  assert min(counts) - 3 <= found.robust.sum() <= max(counts) + 3
  always, never = np.all(theirs, 0), ~np.any(theirs, 0)
  assert found.robust[always].mean() > 0.98
  assert found.robust[never].mean() < 0.05
