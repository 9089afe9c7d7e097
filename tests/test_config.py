import json
import re

import pytest

from vmoe_robust import attacks
from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError, judging, mesh_shape, moe_blocks, saved


def sparse(**changes):
  config = config_lib.default()
  config.model.update(dict(experts=8, moe_every=2))
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  ('devices', 'changes', 'expected'),
  [
    (8, {}, (1, 8, 1)),
    (16, {}, (2, 8, 1)),
    (8, {'model.experts': 12}, (2, 4, 1)),
    (6, {}, (3, 2, 1)),
    (8, {'mesh.model': 2}, (1, 4, 2)),
    (8, {'mesh.data': 4}, (4, 2, 1)),
    (8, {'mesh.expert': 2}, (4, 2, 1)),
    (8, {'model.experts': 0, 'model.moe_every': 0}, (8, 1, 1)),
    (1, {}, (1, 1, 1)),
  ],
)
def test_mesh_shape(devices, changes, expected):
  assert mesh_shape(sparse(**changes), devices) == expected


@pytest.mark.parametrize(
  'changes',
  [
    {'mesh.model': 3},
    {'mesh.data': 3},
    {'mesh.data': 2, 'mesh.expert': 2},
    {'mesh.expert': 0},
    {'mesh.data': 0},
    {'mesh.data': 2, 'model.experts': 6},
  ],
)
def test_mesh_that_does_not_fit(changes):
  with pytest.raises(UserError, match='config.mesh'):
    mesh_shape(sparse(**changes), 8)


def test_which_blocks_are_sparse():
  blocks = lambda **c: moe_blocks(sparse(**{'model.layers': 12, **c}).model)
  assert blocks() == (1, 3, 5, 7, 9, 11)
  assert blocks(**{'model.moe_every': 3}) == (2, 5, 8, 11)
  assert blocks(**{'model.moe_every': 0, 'model.moe_last': 2}) == (9, 11)
  listed = {'model.moe_every': 0, 'model.moe_blocks': (4, 0)}
  assert blocks(**listed) == (0, 4)
  assert blocks(**{'model.experts': 0}) == ()


def test_json_round_trip_keeps_types():
  config = sparse(**{'attack.eps': (0.1, 0.2), 'model.moe_every': 1})
  found = config_lib.from_json(config_lib.to_json(config))
  assert not config_lib.differences(config, found)
  assert found.attack.eps == (0.1, 0.2)
  assert isinstance(found.attack.eps, tuple)


def test_differences_name_the_field():
  assert config_lib.differences(sparse(seed=1), sparse()) == [
    'config.seed=1 (was 0)'
  ]
  model = sparse(**{'model.hidden': 32})
  ignoring = lambda *names: config_lib.differences(model, sparse(), names)
  assert ignoring('config.model.') == ignoring('config.model.hidden') == []
  assert len(ignoring('config.mode', 'config.model.hid')) == 1


def test_groups_must_survive_accumulation():
  config = sparse(**{'train.accumulate': 4, 'train.batch_size': 24})
  with pytest.raises(
    UserError, match='config.train.batch_size=24.*use 16 or 32'
  ):
    config_lib.validate(config, 1)
  config.train.batch_size = 32
  config_lib.validate(config, 1)


@pytest.mark.parametrize('use', ['eval', 'attack'])
def test_batches_that_share_capacity_have_whole_groups(use):
  """Of a group that is cut, images have the slots of those that lack."""
  config = sparse(**{f'{use}.experts': 'capacity', f'{use}.batch_size': 12})
  config.mesh.expert = 1
  for group, fits in ((4, True), (8, False), (24, False)):
    config.model.router.group_images = group
    if fits:
      config_lib.validate(config, 2)
      continue
    words = f'config.{use}.batch_size=12 is not divisible by {group}, .*group_i'
    with pytest.raises(UserError, match=words):
      config_lib.validate(config, 2)
    for harmless in ({'experts': 'dropless'}, {'batch_size': group}):
      other = config.copy_and_resolve_references()
      other[use].update(harmless)
      config_lib.validate(other, 2)
  inherits = config.copy_and_resolve_references()
  inherits.train.batch_size, inherits[use].batch_size = 12, 0
  with pytest.raises(UserError, match='=12 .not set: that of evaluation or of'):
    config_lib.validate(inherits, 2)
  inherits.attack.at_end = False
  inherits.eval.experts = 'dropless'
  config_lib.validate(inherits, 2)  # nothing attacks
  config.model.router.name, config.model.router.noise_std = 'soft', 0.0
  config.model.router.update(dict(load_weight=0.0, importance_weight=0.0))
  config_lib.validate(config, 2)  # each image is a group


@pytest.mark.parametrize('name', ['mean', 'std'])
def test_a_model_without_a_mean_is_refused(name):
  with pytest.raises(UserError, match=f'config.model.{name}=.. has no number'):
    config_lib.validate(sparse(**{f'model.{name}': ()}), 1)


def test_groups_of_an_even_number_hold_whole_pairs():
  """`test_accumulation_matches_the_whole_batch` trains in such ones."""
  config = sparse(**{'train.accumulate': 4, 'train.batch_size': 16})
  config.data.mixup = 0.5
  config_lib.validate(config, 1)
  config.model.router.group_images = 3
  config.train.batch_size = 12
  with pytest.raises(UserError, match='12 is not divisible by 24, .* pairs'):
    config_lib.validate(config, 1)


def test_two_ways_to_place_blocks():
  config = sparse(**{'model.moe_last': 1})
  with pytest.raises(
    UserError, match='moe_every=2 and config.model.moe_last=1'
  ):
    config_lib.validate(config, 1)


@pytest.mark.parametrize(
  'changes',
  [
    {'name': 'autoattack', 'experts': 'capacity'},
    {'name': 'pgd', 'compute_dtype': 'bfloat16'},
    {'name': 'autoattack_plus', 'restarts': 1},
  ],
  ids=str,
)
def test_one_engine_serves_all_attacks_alike(changes):
  attack = config_lib.default().attack
  attack.update(changes)
  config_lib.validate_attack(attack)


@pytest.mark.parametrize('mode', ['train', 'attack'])
@pytest.mark.parametrize('name', ['pgd', 'autoattack_rand', 'apgd_ce+fab'])
def test_queries_of_an_attack_that_asks_none_are_refused(name, mode):
  config = config_lib.default()
  config.mode = mode
  config.attack.update(dict(name=name, queries=100))
  words = f'config.attack.queries=100 .*{re.escape(repr(name))}'
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


def test_attacks_that_ask_queries_are_those_with_square():
  for name in judging.ATTACKS:
    if name not in judging.WHOLE_ATTACKS:
      stages = attacks.ensemble(name, 'linf', 10).stages
      square = any(stage.name == 'square' for stage in stages)
      assert square == (name in judging.QUERYING), name


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'name': 'fgm'}, "name='fgm'"),
    ({'restarts': 3, 'random_start': False}, 'restarts=3'),
    ({'restarts': -1}, 'restarts=-1 must be between 0 and'),
    ({'restarts': 2**40}, 'restarts=1099511627776 must be between 0 and'),
    ({'steps': 2**40}, 'steps=1099511627776 must be 1000000000 or less'),
    (
      {'name': 'square', 'queries': 2**31 - 1},
      'queries=2147483647 must be 1000000000 or less',
    ),
    ({'name': 'paper', 'norm': 'l2', 'eps': (0.5,)}, "norm='l2'"),
    ({'norm': 'l2'}, 'eps is left at radii of linf; set it'),
    ({'name': 'paper', 'momentum': 0.9}, 'momentum=0.9'),
    ({'eps': ()}, 'no sweep'),
    ({'eps': (0.1, 0.1000000001)}, 'twice'),
    ({'eps': (0.0627451, 0.0627450)}, 'twice'),  # both are 16/255
    ({'eps': ('8/255',)}, 'write 0.0313725'),
    ({'eps': ('(1/255, 2 / 255)',)}, 'write (0.00392157, 0.00784314)'),
    ({'eps': ('much',)}, "'much' is not a number"),
    ({'eps': (True,)}, 'True is not a number'),
    ({'eps': (1e40,), 'norm': 'l2'}, 'eps=1e+40 is no radius'),
    ({'norm': 'l2', 'eps': (float('inf'),)}, 'no radius'),
    ({'steps': 0}, 'config.attack.steps=0'),
    ({'name': 'apgd_ce+sqare'}, "'sqare' is not known"),
    ({'name': 'pgd+autoattack'}, 'stands alone'),
    ({'name': 'apgd_t', 'target': 'random'}, "config.attack.target='random'"),
    ({'name': 'fab', 'compute_dtype': 'float8'}, "'float8' is not known"),
    ({'queries': 0}, 'config.attack.queries=0'),
    ({'step_size': -1.0}, 'config.attack.step_size=-1.0'),
    ({'step_size': float('inf')}, 'step_size=inf is not finite'),
    ({'momentum': float('nan')}, 'momentum=nan is not finite'),
    ({'class_weight': -1.0}, 'class_weight=-1.0 must be 0 or more'),
    ({'class_weight': 0.0}, 'leaves nothing to attack'),
  ],
  ids=str,
)
def test_attacks_that_make_no_sense(changes, words):
  attack = config_lib.default().attack
  with attack.ignore_type():
    attack.update(changes)
  with pytest.raises(UserError, match='config.attack') as error:
    config_lib.validate_attack(attack)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(experts=0, moe_every=0), 'the model is dense'),
    (
      {'router.importance_weight': 0.0},  # load is of draws, and none is drawn
      r'the model has none: config\.model\.router\.gshard_weight',
    ),
    ({'router.name': 'soft'}, "none: config.model.router.name='soft'"),
    ({'router.name': 'hash'}, "none: config.model.router.name='hash'"),
    ({'router.name': 'expert_choice'}, r'router\.z_weight are 0'),
  ],
  ids=str,
)
def test_routers_without_a_loss_cannot_be_attacked(changes, words):
  attack = {'attack.class_weight': 0.0, 'attack.auxiliary_weight': 0.5}
  config_lib.validate(sparse(**attack), 1)  # its routers have one
  config = sparse(**attack, **{f'model.{k}': v for k, v in changes.items()})
  with pytest.raises(UserError, match=f'auxiliary_weight=0.5 .*{words}'):
    config_lib.validate(config, 1)


def test_attack_of_a_checkpoint_fits_its_own_batch_alone():
  config = sparse(**{'model.experts': 6, 'train.batch_size': 32})
  config.attack.batch_size = 30
  with pytest.raises(UserError, match='config.train.batch_size=32'):
    config_lib.validate(config, 6)
  config.mode = 'attack'
  config_lib.validate(config, 6)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'keep': 0}, 'config.save.keep=0'),
    ({'every_minutes': -1.0}, 'config.save.every_minutes=-1.0'),
    ({'on_damage': 'fallback'}, "did you mean 'fall_back'"),
    ({'best': 'eval_acc'}, "did you mean 'eval_accuracy'"),
    ({'best': 'eval_loss'}, 'set config.data.validation'),
    ({'best': 'robust_accuracy/0.1'}, "config.save.best='robust_accuracy/0.1'"),
  ],
  ids=str,
)
def test_saves_that_make_no_sense(changes, words):
  config = config_lib.default()
  config.save.update(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'checkpoint': 'runs/a'}, 'name the weights in config.init_from'),
    ({'num_selected': 2}, 'set config.model.router.selected'),
    ({'init_from_except': ('head',)}, "config.init_from_except=\\('head',\\)"),
    ({'init_from_noise': 0.1}, 'config.init_from_noise=0.1 has no effect'),
    ({'init_from_noise': float('inf')}, 'is no deviation'),
  ],
  ids=str,
)
def test_starts_that_would_be_ignored(changes, words):
  config = config_lib.default()
  config.update(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


def test_the_best_under_attack_needs_attacks():
  config = config_lib.default()
  config.attack.update(dict(eps=(0.1,), every_steps=10))
  config.data.validation, config.save.best = 0.1, 'robust_accuracy/0.1'
  config_lib.validate(config, 1)
  config.attack.every_steps = 0
  config.train.monitor.eps = 0.1  # measures it too, at each evaluation
  with pytest.raises(UserError, match='config.eval.every_steps=0; set that'):
    config_lib.validate(config, 1)
  config.eval.every_steps = 10
  config_lib.validate(config, 1)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'data.validation': 1.0}, 'config.data.validation=1.0 is the share'),
    ({'train.monitor.eps': 0.1}, 'config.data.validation=0 holds none out'),
    ({'train.monitor.eps': -1.0}, 'config.train.monitor.eps=-1.0 is no radius'),
    (
      {'train.optimizer.warmup_steps': 2**31},
      'between -2147483647 and 2147483647',
    ),
    ({'train.optimizer.learning_rate': 1e40}, r'between -3e\+38 and 3e\+38'),
    ({'train.monitor.eps': 8.0}, 'config.train.monitor.eps=8.0 is above 1'),
    ({'train.monitor.max_fall': 0.0}, 'config.train.monitor.max_fall=0.0'),
    ({'train.monitor.on_fall': 'halt'}, "on_fall='halt'"),
    ({'train.monitor.steps': 0}, 'config.train.monitor.steps=0'),
  ],
  ids=str,
)
def test_watching_that_makes_no_sense(changes, words):
  config = config_lib.default()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)


def test_a_foreign_configuration_is_refused():
  with pytest.raises(UserError, match="field 'config.lr'"):
    config_lib.from_json('{"lr": 1}')
  with pytest.raises(UserError, match="field 'config.train.lr'"):
    config_lib.from_json('{"train": {"lr": 1}}')


def test_a_configuration_without_a_version_is_of_version_0():
  found = config_lib.from_json('{"train": {"steps": 3}}')
  assert found.version == saved.VERSION == config_lib.default().version
  assert found.train.steps == 3
  assert json.loads(config_lib.to_json(found))['version'] == saved.VERSION


@pytest.mark.parametrize(
  ('version', 'words'),
  [(saved.VERSION + 1, 'install a newer'), (-1, 'no version'), ('x', "'x'")],
)
def test_a_version_that_is_not_known_is_refused(version, words):
  with pytest.raises(UserError, match=words):
    config_lib.from_json(json.dumps({'version': version, 'new': 1}))
  config = config_lib.default()
  with config.ignore_type():
    config.version = version
  with pytest.raises(UserError, match='config.version'):
    config_lib.validate(config, 1)


def test_fields_move_by_name_one_version_after_the_other():
  moved = {
    0: {'corrupt': 'study.corruptions', 'gone': None, 'a.b': 'c'},
    1: {'study.corruptions.names': 'study.names', 'not.there': 'x.y'},
    2: {},
  }
  old = {'corrupt': {'names': [1], 'every': 2}, 'gone': 1, 'a': {'b': 3}}
  new = {'study': {'corruptions': {'every': 2}, 'names': [1]}, 'c': 3}
  assert saved.migrate(old, moved, 3) == new | {'a': {}, 'version': 3}
  later = {'corrupt': 1, 'study': {'corruptions': {'names': 2}}, 'version': 1}
  assert saved.migrate(later, moved, 2) == {
    'corrupt': 1,
    'study': {'corruptions': {}, 'names': 2},
    'version': 2,
  }
  assert 'corrupt' in old


def test_every_field_that_moved_has_a_place_now():
  known = config_lib.flatten(config_lib.default())
  for moves in saved.MOVED.values():
    for new in filter(None, moves.values()):
      name = f'config.{new}'
      assert any(n == name or n.startswith(f'{name}.') for n in known), new


@pytest.mark.parametrize('steps', [(3,), (0, 2), (5, 4), (1.0, 2), ('1', '2')])
def test_steps_to_profile_are_a_pair(steps):
  config = config_lib.default()
  config.train.profile_steps = steps
  with pytest.raises(UserError, match='config.train.profile_steps'):
    config_lib.validate(config, 1)


def test_every_field_has_a_full_name():
  found = config_lib.flatten(config_lib.default())
  assert found['config.attack.steps'] == 40
  assert found['config.model.router.name'] == 'top_k'
  assert not any(hasattr(value, 'items') for value in found.values())


def test_lists_of_attacks_are_the_same_here_and_there():
  from vmoe_robust.attacks import ensembles
  from vmoe_robust.config import judging

  assert {*judging.ATTACKS} == {*ensembles.names(), *judging.WHOLE_ATTACKS}


@pytest.mark.parametrize(
  ('fields', 'router', 'words'),
  [
    ({}, dict(gate='relu'), "router.gate='relu'"),
    ({}, dict(capacity_factor=0.0), 'capacity_factor=0.0 is no factor'),
    ({}, dict(capacity_factor=float('inf')), "inf .*'dropless'"),
    (dict(moe_every=0, moe_last=3), {}, 'moe_last=3 .* use at most 2'),
    (dict(moe_every=0, moe_blocks=(1.5,)), {}, 'whole ones'),
    ({}, dict(unit='pixel'), "router.unit='pixel'"),
    ({}, dict(name='hash', gate='sigmoid'), "'sigmoid' has no effect .*'hash'"),
    ({}, dict(name='soft', renormalize=True), 'renormalize=True has no effect'),
    ({}, dict(name='expert_choice', unit='image'), 'has no effect'),
    ({}, dict(name='oracle', frozen=True), 'frozen=True has no effect'),
    ({}, dict(renormalize=True), 'every gate 1.*selected=2'),
    ({}, dict(renormalize=True, gate='uniform', selected=2), 'sum to one'),
    ({}, dict(balance_rate=0.001), 'set load_weight=0'),
    ({}, dict(balance_rate=-1.0), 'balance_rate=-1.0'),
    ({}, dict(name='oracle'), 'attack.at_end=True.*told the class'),
    (dict(expert_mlp=-1), {}, 'expert_mlp=-1'),
    (dict(experts=0, moe_every=0, shared_experts=1), {}, 'without experts'),
    (dict(experts=0, moe_every=0, expert_mlp=8), {}, 'without experts'),
  ],
)
def test_routers_that_make_no_sense(fields, router, words):
  config = config_lib.default()
  config.model.update(dict(experts=8, moe_every=2) | fields)
  config.model.router.update(router)
  with pytest.raises(config_lib.UserError, match=words):
    config_lib.validate(config, 1)


def test_an_oracle_is_no_classifier():
  config = config_lib.default()
  config.model.update(dict(experts=8, moe_every=2))
  config.model.router.name = 'oracle'
  config.attack.at_end = False
  config_lib.validate(config, 1)
  for field, value, words in (
    ('attack.every_steps', 10, 'every_steps=10 attacks'),
    ('save.best', 'eval_accuracy', 'best=.*not measured'),
    ('train.monitor.eps', 0.1, 'monitor.eps=0.1 attacks'),
    ('train.loss', 'sigmoid', 'no one class'),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.eval.every_steps = 10
    wrong.update_from_flattened_dict({field: value})
    with pytest.raises(config_lib.UserError, match=words):
      config_lib.validate(wrong, 1)


def test_experts_are_spread_by_their_own_width():
  config = config_lib.default()
  config.model.update(dict(experts=8, moe_every=2, expert_mlp=9))
  config.mesh.model = 2
  with pytest.raises(config_lib.UserError, match='expert_mlp=9 .*mesh.model=2'):
    config_lib.validate(config, 8)


def test_a_study_has_its_clean_images_once():
  config = config_lib.default()
  config.mode, config.attack.eps = 'study', (0.0, 0.1)
  config.study.name = 'corruptions'  # which attacks nothing
  config_lib.validate(config, 1)
  config.study.name = 'losses'
  with pytest.raises(UserError, match=r'config\.attack\.eps=\(0\.0, 0\.1\)'):
    config_lib.validate(config, 1)
  config.mode = 'attack'  # there 0 shows that nothing moves
  config_lib.validate(config, 1)


def test_one_name_is_not_measured_twice():
  config = config_lib.default()
  config.data.validation, config.train.monitor.eps = 0.1, 8 / 255
  config.attack.eps = (8 / 255, 16 / 255)
  config_lib.validate(config, 1)
  config.attack.every_steps = 100
  with pytest.raises(UserError, match=r'monitor\.eps=0\.03.* is one of'):
    config_lib.validate(config, 1)
  config.train.monitor.eps = 4 / 255
  config_lib.validate(config, 1)


@pytest.mark.parametrize(
  ('size', 'share', 'clean'),
  [(41, 1 / 41, 1), (47, 1 / 47, 1), (64, 0.5, 32), (64, 1 - 1 / 64, 63)],
)
def test_clean_images_of_a_batch_are_counted_exactly(size, share, clean):
  assert config_lib.clean_images(size, share) == clean


def test_of_a_study_the_fields_of_others_are_not_read():
  config = config_lib.default()
  assert config_lib.unread(config) == ('config.study.',)
  config.mode, config.study.name = 'study', 'load'
  config.study.names = ('margin',)
  found = config_lib.unread(config)
  assert 'config.study.knobs.' in found and 'config.study.load.' not in found
  assert 'config.study.margin.' not in found
  assert 'config.attack.batch_size' in found
  config.study.names = ('routing_attacks',)
  assert 'config.attack.batch_size' not in config_lib.unread(config)


def test_of_folders_the_directory_tells_the_images():
  assert 'config.data.dir' in config_lib.machine_fields('digits')
  assert 'config.data.dir' not in config_lib.machine_fields('folder')


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'train.label_smoothing': 1.0}, 'label_smoothing=1.0 is the share'),
    ({'seed': -1}, 'config.seed=-1 is no whole number'),
    ({'seed': 2**32}, 'config.seed=4294967296 is no'),
    ({'model.moe_every': 0, 'model.moe_blocks': (1, 1)}, 'has a value twice'),
    (
      {
        'model.router.balance_rate': 0.1,
        'model.router.gate': 'sigmoid',
        'model.router.load_weight': 0.0,
        'model.router.importance_weight': 0.0,
        'model.router.gshard_weight': 0.01,
      },
      r'gshard_weight=0\.01 is of a selection by the router alone',
    ),
  ],
  ids=str,
)
def test_values_that_would_make_another_number(fields, words):
  with pytest.raises(UserError, match=words):
    config_lib.validate(sparse(**fields), 1)
