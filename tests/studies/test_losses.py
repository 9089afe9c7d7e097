import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.config.studies import ATTACKING
from vmoe_robust.evaluate.job import write
from vmoe_robust.studies import losses, routing_change


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'losses'
  config.study.losses.batch_size = 8
  config.study.routing_change.batch_size = 8
  config.attack.update(dict(eps=(0.2,), random_start=False))
  return config


@pytest.mark.slow
def test_each_attack_raises_its_own_loss(
  config, in_memory, model_of, opened, tmp_path, check_form
):
  model, params = model_of(config)
  source = in_memory(11)
  job = opened(config, source, model, params, tmp_path)
  write(job, losses.run(job))
  results = check_form(tmp_path)
  clean, of_class, auxiliary, _ = results['rows']
  for name, raised, other in (
    ('class_loss', of_class, auxiliary),
    ('auxiliary_loss', auxiliary, of_class),
  ):
    assert raised[name]['value'] > other[name]['value']
    assert raised[name]['value'] > clean[name]['value'] > 0
  assert of_class['less_than_class']['p'] == 1
  # The class alone is what other studies attack.
  known = routing_change.run(opened(config, source, model, params)).rows[1]
  found = of_class['accuracy']['value']
  assert found == known['accuracy']['value']


@pytest.mark.slow
def test_a_router_that_ignores_its_input_has_nothing_to_attack(
  config, in_memory, model_of, opened
):
  """Its loss has no gradient: images stay, and both is the class alone."""
  model, params = model_of(config)
  for block in ('encoderblock_0', 'encoderblock_1'):
    router = params['Encoder'][block]['Moe']['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])
  found = losses.run(opened(config, in_memory(8), model, params))
  clean, of_class, auxiliary, both = found.rows
  for name in ('accuracy', 'class_loss', 'auxiliary_loss', 'selected'):
    assert auxiliary[name] == clean[name]
  value = lambda row: row['class_loss']['value']
  assert value(both) == pytest.approx(value(of_class), rel=1e-3)
  assert value(of_class) > value(clean) + 0.01


@pytest.mark.parametrize(
  ('where', 'fields', 'words'),
  [
    ('model', dict(experts=0), 'is dense'),
    ('router', dict(name='soft'), 'is about routers top_k'),
    (
      'router',
      dict(importance_weight=0.0, load_weight=0.0),
      'the model has none: config.model.router.',
    ),
  ],
)
def test_what_does_not_fit_is_told(
  config, in_memory, model_of, opened, where, fields, words
):
  model, params = model_of(config)
  router = config.model.router
  {'model': config.model, 'router': router}[where].update(fields)
  if 'importance_weight' in fields:
    for name in router:
      if name.endswith('_weight'):
        router[name] = 0.0
  with pytest.raises(UserError, match=words):
    losses.run(opened(config, in_memory(8), model, params))


@pytest.mark.parametrize('name', ATTACKING)
def test_the_loss_of_routers_is_for_studies_that_leave_routing_alone(
  config, name
):
  """It is that of the routers as they were, whatever a study does to them."""
  config.study.name = name
  config.study.transfer.others = ('x',)
  config.attack.update(dict(random_start=True, class_weight=0.0))
  config.attack.auxiliary_weight = 1.0
  if name in (
    'margin', 'norm_union', 'routing_change', 'substitution', 'transfer'
  ):  # fmt: skip
    validate(config, 1)
    return
  words = f"class_weight=0.0 does not fit config.study.name='{name}'"
  with pytest.raises(UserError, match=words):
    validate(config, 1)
  config.attack.class_weight = 1.0
  with pytest.raises(UserError, match='auxiliary_weight=1.0 does not fit'):
    validate(config, 1)


@pytest.mark.slow
def test_losses_of_several_labels_and_of_images_that_are_alike(
  config, in_memory, model_of, opened
):
  """All logits 0: of C classes the loss is C log 2 with several labels."""
  config.model.layers, config.attack.steps = 1, 1
  config.train.loss = 'sigmoid'
  model, params = model_of(config)
  params['head']['kernel'] = np.zeros_like(params['head']['kernel'])
  source = in_memory(8, multi_label=True)
  found = losses.run(opened(config, source, model, params))
  assert found.columns['class_loss'].shape == (4 * 8,)
  for row in found.rows:
    # Eight images that are alike do not say how far others are.
    assert row['class_loss'] == {
      'value': pytest.approx(4 * np.log(2)),
      'interval': None,
      'n': 8,
    }
