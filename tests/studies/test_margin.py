import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studies.conftest import patches
from vmoe_robust.config import UserError, validate
from vmoe_robust.models import Record
from vmoe_robust.models.routers.routing import Placement, Routing
from vmoe_robust.studies import choices, first_order, margin
from vmoe_robust.studies import conditions as under

BLOCK = 'encoderblock_0'


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'margin'
  config.attack.update(dict(steps=1, eps=(0.05, 0.2)))
  return config


@pytest.mark.slow
def test_the_radius_of_a_linear_router_in_closed_form(
  config, in_memory, two_experts, opened
):
  rng, c = np.random.default_rng(1), 4.0
  w = rng.normal(size=(4, 4)).astype(np.float32) / 4
  model, params = two_experts(w, c, np.zeros((2, 16)))
  source = in_memory(11)  # of batches of 8
  source.images = rng.integers(100, 156, source.images.shape, np.uint8)
  found = margin.run(opened(config, source, model, params))
  # m = 2 |z| / sqrt((2 z^2 + 2 C^2) / 16) over its slope by z is
  # |z| (1 + z^2 / C^2), and 2 |w|_1 is how fast z changes.
  z = (patches(source.images / 127.5 - 1) * w).sum((2, 3))
  expected = np.abs(z) * (1 + z**2 / c**2) / (2 * np.abs(w).sum())
  columns = under.of(found.columns, under.CLEAN)
  np.testing.assert_allclose(columns['radius/any'], expected.min(1), rtol=1e-3)
  for eps, row in zip((0, 0.05, 0.2), found.rows, strict=True):
    below = (expected <= eps).mean(1)
    assert row['below'][BLOCK]['value'] == pytest.approx(below.mean())
    assert row['images']['below']['value'] == (below > 0).mean()
    # The choice changes at |z| / (2 |w|_1), a little nearer.
    reached = (1.1 * expected <= eps).mean()
    assert row['reached'][BLOCK]['value'] == pytest.approx(reached)
  assert 0 < found.rows[1]['below'][BLOCK]['value'] < 1
  median = np.quantile(expected.min(1), 0.5, method='lower')
  smallest = found.summary['smallest_radius'][BLOCK]['0.5']
  assert smallest == pytest.approx(median, rel=1e-3)
  assert 'encoderblock_0, tokens' in margin.render(
    {'rows': found.rows, 'summary': found.summary}
  )
  # What an attack changes is known of all tokens, however few are drawn.
  config.study.margin.tokens = 1
  drawn = margin.run(opened(config, source, model, params))
  for one, other in zip(found.rows, drawn.rows, strict=True):
    assert one['changed'] == other['changed']
    assert one['images']['changed'] == other['images']['changed']
    for name in ('below', 'reached'):
      some, every = other['images'][name], one['images'][name]
      assert some['value'] <= every['value']
  text = margin.render({'rows': drawn.rows, 'summary': drawn.summary})
  assert 'below, of 1 tokens' in text and 'changed, of' not in text
  assert 'of images below and reached are at least' in drawn.warnings[0]


@pytest.mark.slow
def test_a_router_that_ignores_its_input_and_one_that_is_not_finite(
  config, in_memory, two_experts, opened
):
  model, params = two_experts(np.ones((4, 4)), 4.0, np.zeros((2, 16)))
  router = params['Encoder'][BLOCK]['Moe']['Router']['dense']
  router['kernel'] = np.zeros_like(router['kernel'])
  found = margin.run(opened(config, in_memory(8), model, params))
  assert np.isinf(found.columns['radius/any']).all()
  for row in found.rows:
    assert all(row[name][BLOCK]['value'] == 0 for name in margin.SHARES)
  assert set(found.summary['smallest_radius']['any'].values()) == {None}
  assert not found.warnings
  router['kernel'] = np.full_like(router['kernel'], np.nan)
  found = margin.run(opened(config, in_memory(8), model, params))
  for row in found.rows:
    assert row['below'][BLOCK]['value'] == 1
    assert row['reached'][BLOCK]['value'] == 0
  assert found.summary['smallest_radius']['any'] == {}
  assert '32 tokens' in found.warnings[0]


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_linear_margins_in_each_norm(norm):
  rng = np.random.default_rng(0)
  w = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
  w[2] = 0
  images = jnp.full((2, 4, 4, 1), 0.5).at[1, 0, 0].set(0.0)
  m = np.array([[0.1, 0.2, 0.3], [0.3, np.nan, 0.0]], np.float32)

  def margins(x):
    return m + jnp.einsum('bhwc,thwc->bt', x - images, w)

  order = jnp.array([[0, 1, 2], [0, 1, 2]])
  radius, reached = first_order.first_order(margins, images, order, norm)
  w[0, 0, 0] = np.abs(w[0, 0, 0])  # a black pixel cannot go down
  length = {
    'linf': lambda g: np.abs(g).sum(),
    'l2': lambda g: np.sqrt(np.square(g).sum()),
    'l1': lambda g: np.abs(g).max(),
  }[norm]
  inner = w[0].copy()
  inner[0, 0] = 0
  expected = [0.1 / length(w[0]), 0.2 / length(w[1]), np.inf]
  np.testing.assert_allclose(radius[0], expected, rtol=1e-5)
  np.testing.assert_allclose(reached[0], 1.1 * np.array(expected), rtol=1e-5)
  np.testing.assert_allclose(radius[1], [0.3 / length(inner), np.nan, np.inf])
  np.testing.assert_array_equal(np.isinf(reached[1]), [False, True, True])


def test_margins_are_by_what_the_router_orders(config):
  logits = jnp.array([[[2.0, 1.0, 0.5, 0.0]]])
  gates, nothing = jax.nn.softmax(logits), jnp.zeros(1)
  bias = jnp.array([-0.9, 0, 0.2, 0])
  experts = jnp.argsort(-(gates + bias))[..., :2]
  assert experts.tolist() == [[[2, 1]]]
  routing = Routing(logits, experts, gates[..., :2], {}, nothing, gates)
  placed = Placement(experts, jnp.ones_like(experts, bool))
  record, params = Record(routing, placed, 1), {'Router': {'bias': bias}}
  params = {'Encoder': {BLOCK: {'Moe': params}}}
  chosen = margin._chosen({BLOCK: record}, config)[BLOCK]

  def found():
    scores = choices.scores_of(config, params, BLOCK, routing)
    return float(margin.signed_margin(scores, chosen)[0, 0])

  assert found() == 0.5 - 2  # by the logits
  config.model.router.balance_rate = 0.1
  assert found() == pytest.approx(float(gates[0, 0, 1] - gates[0, 0, 3]))


def test_tokens_that_are_drawn(config):
  config.study.margin.tokens = 3
  index = jnp.array([5, 6, 5, 7])
  found = np.array(margin.sampled(config, index, 8))
  assert found.shape == (4, 3)
  assert all(len(set(row)) == 3 for row in found)
  np.testing.assert_array_equal(found[0], found[2])
  assert len({tuple(row) for row in found}) == 3
  with pytest.raises(UserError, match=r'margin\.tokens=3.*image has 2'):
    margin.sampled(config, index, 2)
  config.study.margin.tokens = 0
  assert margin.sampled(config, index, 2).tolist() == 4 * [[0, 1]]


def test_other_models_are_told(config, in_memory, model_of, opened):
  def told(words):
    model, params = model_of(config)
    with pytest.raises(UserError, match=words):
      margin.run(opened(config, in_memory(8), model, params))

  config.model.router.selected = 4
  told('selected=4 are all experts')
  config.model.router.name = 'expert_choice'
  told('about routers top_k.*expert_choice')
  config.model.experts = 0
  told('is dense')


def test_what_the_attack_of_a_study_does_not_read_is_refused(config):
  config.mode, config.study.name = 'study', 'margin'
  validate(config, 1)
  config.attack.queries = 100
  with pytest.raises(UserError, match='config.attack.queries=100 .*no effect'):
    validate(config, 1)
