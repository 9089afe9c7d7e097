import numpy as np
import pytest

from tests.studies.conftest import patches, two_experts
from vmoe_robust.evaluate.attack import Attacker, attack
from vmoe_robust.evaluate.token_experts import of_shown, token_experts
from vmoe_robust.report.results import read_results
from vmoe_robust.report.tokens import TokenExperts
from vmoe_robust.robustness.sweep import Shown, Swept

__all__ = ['two_experts']
W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


@pytest.fixture
def closed_form(config, two_experts):
  """A model whose tokens go to expert 0 where w . (2 x - 1) is above zero."""
  config.attack.eps = (0.3,)
  return two_experts(W, 1.0, np.random.default_rng(1).normal(size=(2, 16)))


def expert_of(images):
  """The expert of each token [images, tokens], as the closed form has it."""
  return np.where((W * (2 * patches(images) - 1)).sum((-1, -2)) > 0, 0, 1)


@pytest.mark.slow
def test_an_attack_shows_those_of_a_router_in_closed_form(
  config, in_memory, closed_form, opened, tmp_path
):
  job = opened(config, in_memory(24), *closed_form, tmp_path)
  attack(job, Attacker(closed_form[0], config))
  with np.load(tmp_path / 'figures' / 'examples.npz') as file:
    found = dict(file)
  assert found['blocks'].tolist() == ['encoderblock_0']
  before, after = (expert_of(found[name]) for name in ('images', 'x_adv'))
  assert found['experts_before'][:, 0, :, 0].tolist() == before.tolist()
  assert found['experts_after'][:, 0, :, 0].tolist() == after.tolist()
  experts = TokenExperts(
    ('encoderblock_0',), found['experts_before'], found['experts_after'],
    bool(found['class_token']),
  )  # fmt: skip
  changed = experts.changed[:, 0]
  assert (changed == (before != after)).all() and 0 < changed.mean() < 1
  # One expert a token: the records' 1 - IoU is the share that changed.
  records = read_results(tmp_path).records
  shares = dict(
    zip(
      records['index'].to_pylist(),
      records['routing_change/encoderblock_0'].to_pylist(),
      strict=True,
    )
  )
  np.testing.assert_allclose(
    changed.mean(-1), [shares[i] for i in found['index']], atol=1e-6
  )


@pytest.mark.slow
def test_pixels_beyond_0_and_1_have_experts_too(
  config, in_memory, closed_form, opened
):
  """The paper's attack leaves them there."""
  images = in_memory(3).images / np.float32(255)
  job = opened(config, in_memory(3), *closed_form)
  found = token_experts(job.classifier, images, 3 * images - 1)
  assert found.before[:, 0, :, 0].tolist() == expert_of(images).tolist()
  wanted = expert_of(3 * images - 1)
  assert found.after[:, 0, :, 0].tolist() == wanted.tolist()


@pytest.mark.parametrize(
  'changes', [{'model.experts': 0}, {'attack.experts': 'capacity'}], ids=str
)
def test_without_experts_of_one_image_there_are_none(
  config, in_memory, model_of, opened, changes
):
  """A dense model has none; in groups they depend on the other images."""
  config.update_from_flattened_dict(changes)
  images = in_memory(2).images / np.float32(255)
  shown = Shown(0.1, np.arange(2), images, images, np.arange(2), np.arange(2))
  swept = Swept({}, {}, [], 1.0, {}, [], shown)
  job = opened(config, in_memory(2), *model_of(config))
  assert of_shown(job.classifier, config, swept) == (swept, None)
