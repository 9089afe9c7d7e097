"""A router that ignores its input: no attack changes what it decides.

Of each study that measures such a change the numbers are exact zeros, at a
radius at which every image can be reached too. `misrouting` and
`routing_attacks` have theirs in their own files.
"""

import numpy as np
import pytest

from tests.studies.conftest import small_config
from vmoe_robust.studies import STUDIES, frozen_routing, margin, questions
from vmoe_robust.studies import conditions as under

BLOCK = 'encoderblock_0'
RADII = (0.1, 1.0)
OF_ALL = ('routing_change', 'frozen_routing')
OF = {'top_k': (*OF_ALL, 'load', 'margin'), 'hash': OF_ALL}

pytestmark = pytest.mark.slow  # for the fixture, which is that of every test


@pytest.fixture(scope='module', params=list(OF))
def blind(request, in_memory, model_of, opened):
  """What studies find of such a router, by their names."""
  config = small_config()
  config.mode = 'study'
  config.model.layers = 1
  config.model.router.update(dict(name=request.param, capacity_factor=0.5))
  config.attack.update(dict(eps=RADII, steps=2))
  model, params = model_of(config)
  if request.param == 'top_k':  # equal logits: the first experts
    router = params['Encoder'][BLOCK]['Moe']['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])

  def ask(name):
    own = config.copy_and_resolve_references()
    own.study.name = name
    return STUDIES[name].ask(opened(own, in_memory(8), model, params))

  names = OF[request.param]
  found = dict(zip(names, questions.answers([*map(ask, names)]), strict=True))
  right = under.right(found['routing_change'].columns).reshape(3, -1)
  assert (right[0] > right[-1]).any()  # the attacks do break images
  return found


def test_no_expert_changes(blind):
  columns = blind['routing_change'].columns
  for name in ('selected', 'official', 'top_1'):
    assert not columns[f'{name}/{BLOCK}'].any()


def test_clean_routing_is_its_own_routing(blind):
  found = blind['frozen_routing']
  for eps in RADII:
    own, *others = (
      under.of(found.columns, row['condition'])['prediction_after']
      for row in found.rows
      if row['eps'] == eps
    )
    assert len(others) == len(frozen_routing.WAYS) - 1
    for other in others:
      np.testing.assert_array_equal(other, own)
  for compared in found.summary['compared'].values():
    for pair in frozen_routing.PAIRS:
      assert compared[pair]['difference']['value'] == 0


def test_load_stays(blind):
  if 'load' not in blind:
    return  # every expert has room, for the hash gives each as many
  found = blind['load']
  clean = under.of(found.columns, under.CLEAN)
  assert clean[f'{BLOCK}/dropped'].any()
  for row in found.rows:
    assert row['more_dropped']['value'] == 0
    here = under.of(found.columns, row['condition'])
    for name in ('dropped', 'max_over_mean', 'cv', 'load'):
      np.testing.assert_array_equal(
        here[f'{BLOCK}/{name}'], clean[f'{BLOCK}/{name}']
      )


def test_no_token_comes_nearer_to_another_expert(blind):
  if 'margin' not in blind:
    return  # it is about routers that score experts
  columns = blind['margin'].columns
  assert np.isinf(columns['radius/any']).all()
  for name in margin.SHARES:
    assert not columns[f'{name}/{BLOCK}'].any()
