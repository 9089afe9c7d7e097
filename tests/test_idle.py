"""Fields of a training run that would have no effect."""

import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError

SPARSE = {'model.experts': 8, 'model.moe_every': 2}
IDLE = [
  ({'model.router.slots': 4}, "slots=4 has no effect .*name='top_k'"),
  (
    {'model.router.name': 'expert_choice', 'model.router.noise_std': 0.5},
    "noise_std=0.5 has no effect .*'expert_choice'",
  ),
  (
    {'model.router.name': 'soft', 'model.router.z_weight': 0.1},
    "z_weight=0.1 has no effect .*'soft'",
  ),
  (
    {'model.router.name': 'hash', 'model.router.batch_priority': True},
    "batch_priority=True has no effect .*'hash'",
  ),
  (
    {'model.router.gate': 'uniform', 'model.router.batch_priority': True},
    'batch_priority=True .* all alike',
  ),
  (
    {'model.router.batch_priority': True, 'train.experts': 'dropless'},
    'batch_priority=True .* no queues',
  ),
  ({'model.router.noise_std': 0.0}, 'load_weight=0.005 is of choices under'),
  ({'model.router.renormalize': True}, 'every gate 1.*selected=2'),
  ({'model.layers': 1, 'model.moe_every': 1, 'model.stochastic_depth': 0.1},
   'stochastic_depth=0.1 has no effect .*layers=1'),
  ({'data.crop_min_area': 0.2}, "crop_min_area=0.2 .*crop='none'"),
  ({'data.pad': 4}, "pad=4 has no effect .*crop='none'; use crop='pad'"),
  ({'data.crop': 'pad'}, "crop='pad' moves nothing with config.data.pad=0"),
  ({'train.optimizer.momentum': 0.5}, "momentum=0.5 .*name='adamw'"),
  ({'train.optimizer.name': 'sgd', 'train.optimizer.b2': 0.9}, 'b2=0.9 .*sgd'),
  ({'train.optimizer.rsqrt_timescale': 5}, "timescale=5 .*'cosine'"),
  (
    {'train.objective.name': 'trades', 'train.objective.beta': 0.0},
    "beta=0 leaves .*'trades'",
  ),
  ({'train.profile_steps': (1001, 1002)}, 'never comes with .*steps=1000'),
  ({'save.keep_every': 300}, 'keep_every=300 keeps .*every_steps=1000'),
  ({'save.keep_every': 300, 'save.every_steps': 0}, 'keep_every=300 keeps'),
  ({'train.monitor.on_fall': 'stop'}, 'watches nothing with .*eps=0'),
  (
    {'train.monitor.on_fall': 'stop', 'train.monitor.eps': 0.1,
     'data.validation': 0.1},
    'nothing to stop with config.eval.every_steps=0',
  ),
  (
    {'study.names': ('losses',)},
    r"study.names=\('losses',\) has no effect .*configs/study.py",
  ),
]  # fmt: skip


def changed(changes):
  config = config_lib.default()
  config.update_from_flattened_dict(SPARSE | changes)
  return config


@pytest.mark.parametrize(('changes', 'words'), IDLE, ids=str)
def test_what_has_no_effect_is_refused_in_training_alone(changes, words):
  """A run that was saved with it can still be judged."""
  config = changed(changes)
  with pytest.raises(UserError, match=words):
    config_lib.validate(config, 1)
  config.mode = 'attack'
  config_lib.validate(config, 1)


@pytest.mark.parametrize(
  'changes',
  [
    {'model.router.name': 'soft', 'model.router.importance_weight': 0.0},
    {'model.router.name': 'expert_choice', 'model.router.z_weight': 0.1},
    {'model.router.name': 'hash', 'model.router.load_weight': 0.0},
    {'model.router.noise_std': 0.0, 'model.router.load_weight': 0.0},
    {'model.experts': 0, 'model.router.slots': 4},  # of a sparse base
    {'model.router.batch_priority': True},
    {'model.router.batch_priority': True, 'train.experts': 'dropless',
     'attack.experts': 'capacity'},
    {'save.keep_every': 3000},
    {'train.optimizer.name': 'adafactor', 'train.optimizer.momentum': 0.5},
  ],
  ids=str,
)  # fmt: skip
def test_what_has_an_effect_or_says_nothing_passes(changes):
  config_lib.validate(changed(changes), 1)


def test_what_a_run_saved_by_does_not_refuse_its_judging():
  """`save.best` names a radius that the attack of another mode has not."""
  config = changed({
    'save.best': 'robust_accuracy/0.1', 'attack.eps': (0.1,),
    'attack.every_steps': 100, 'data.validation': 0.1,
  })  # fmt: skip
  config_lib.validate(config, 1)
  config.attack = config_lib.default().attack
  for mode in ('attack', 'study'):
    config.mode = mode
    config_lib.validate(config, 1)
