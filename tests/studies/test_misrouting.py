import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.data import Corruption
from vmoe_robust.report.statistics import wilson
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import misrouting


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'misrouting'
  config.study.misrouting.names = ('gaussian_noise', 'contrast')
  config.study.misrouting.severities = (1, 5)
  config.model.router.selected = 1
  config.attack.update(dict(eps=(0.05,)))
  return config


@pytest.mark.slow
def test_each_row_is_the_model_with_that_routing(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  router = params['Encoder']['encoderblock_0']['Moe']['Router']['dense']
  router['kernel'] = 3 * router['kernel']
  source = in_memory(11)  # of batches of 8, over variants
  found = misrouting.run(opened(config, source, model, params))
  columns = found.columns
  assert len(columns['index']) == 5 * 2 * 11
  clean = jnp.stack([jnp.asarray(i) for i in source.images]) / 255

  @jax.jit
  def both(images):
    records = model.apply(params, clean)[1].records
    hold = lambda block, tokens, _: (tokens, records[block].routing)
    own, now = model.apply(params, images)
    held, _ = model.apply(params, images, intervene=hold)
    moved = [
      (now.records[b].routing.experts != r.routing.experts).mean((1, 2))
      for b, r in records.items()
    ]
    return own.argmax(-1), held.argmax(-1), jnp.stack(moved).mean(0)

  for shown in misrouting.variants(config):
    images = [shown(image, i) for i, image in enumerate(source.images)]
    own, held, moved = both(jnp.stack(images) / 255)
    for way, expected in (('own', own), ('clean', held)):
      here = under.of(columns, misrouting._name(shown, way))
      assert here['index'].tolist() == list(range(11))
      np.testing.assert_array_equal(here['prediction_after'], expected)
      np.testing.assert_array_equal(here['label'], source.labels)
      change = moved if way == 'own' else np.zeros_like(moved)
      np.testing.assert_allclose(here['routing_change'], change, atol=1e-6)
  _check_summary(found)


def _check_summary(found):
  right = {
    row['condition']: under.right(under.of(found.columns, row['condition']))
    for row in found.rows
  }
  of = lambda name, s, way: right[f'{name} {s}, {way} routing']
  wins = lambda name, s: of(name, s, 'clean') * 1.0 - of(name, s, 'own')
  names, summary = ('gaussian_noise', 'contrast'), found.summary
  differences = [(wins(name, 1) + wins(name, 5)) / 2 for name in names]
  assert any(np.any(one) for one in differences)  # routing mattered
  for name, each in zip(names, differences, strict=True):
    one = summary['corruptions'][name]['difference']
    assert one['value'] == pytest.approx(each.mean())
  overall = summary['overall']
  assert overall['difference']['value'] == pytest.approx(np.mean(differences))
  both = overall['clean_routing']['value'] - overall['own_routing']['value']
  assert both == pytest.approx(overall['difference']['value'])
  at = summary['compared']['contrast 5']
  assert at['only_first'] == (wins('contrast', 5) > 0).sum()
  # Clean images have the same routing twice.
  assert (summary['clean']['only_first'], summary['clean']['p']) == (0, 1)
  assert 'overall' not in misrouting.render(
    {'rows': found.rows, 'summary': summary}
  )


@pytest.mark.slow
def test_what_changes_no_routing_changes_no_accuracy(
  config, in_memory, model_of, opened, monkeypatch
):
  model, params = model_of(config, (2, 2, 1))
  job = opened(config, in_memory(6), model, params)
  shown = (Corruption(), *(Corruption('clean', s) for s in (1, 5)))
  with monkeypatch.context() as patch:  # images that stay as they are
    patch.setattr(misrouting, 'variants', lambda config: shown)
    columns, _ = misrouting.predictions(job)
  assert not columns['routing_change'].any()
  half = len(columns['index']) // 2
  after = columns['prediction_after']
  np.testing.assert_array_equal(after[:half], after[half:])
  for block in ('encoderblock_0', 'encoderblock_1'):
    router = params['Encoder'][block]['Moe']['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])
  found = misrouting.run(opened(config, in_memory(6), model, params))
  assert not found.columns['routing_change'].any()
  for one in found.summary['compared'].values():
    assert (one['only_first'], one['only_second'], one['p']) == (0, 0, 1)
  difference = found.summary['overall']['difference']
  none = wilson(np.zeros(difference['n'], bool))[1]  # 0, but not for certain
  assert difference['interval'] == pytest.approx((-none, none))
  assert not found.warnings


def test_refusals(config, in_memory, model_of, opened):
  config.study.misrouting.severities = (6,)
  with pytest.raises(UserError, match=r'misrouting\.severities=6'):
    validate(config, 1)
  config.model.experts = 0
  model, params = model_of(config)
  with pytest.raises(UserError, match='is dense'):
    misrouting.run(opened(config, in_memory(8), model, params))
