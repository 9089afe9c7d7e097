"""What a mode may say of a run that was saved."""

import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.combine import combine_saved, refuse_unchanged


def saved(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict(changes)
  config.model.num_classes, config.model.channels = 10, 1
  return config


def asked(mode='attack', **changes):
  config = config_lib.default()
  config.mode, config.data.name = mode, ''
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('attack.every_steps', 5),
    ('attack.at_end', False),
    ('train.steps', 5),
    ('train.log_every', 5),
    ('save.keep', 5),
    ('study.losses.batch_size', 8),
  ],
)
def test_what_has_no_effect_on_an_attack_is_refused(field, value):
  words = f'config.{field}=.* has no effect with config.mode=.attack'
  with pytest.raises(UserError, match=words):
    combine_saved(asked(**{field: value}), saved())


@pytest.mark.parametrize('mode', ['attack', 'study'])
def test_how_a_run_was_trained_does_not_refuse_its_judging(mode):
  """Fields that would be refused in training today, and a radius of 0."""
  config = saved(**{
    'save.best': 'robust_accuracy/0.1', 'attack.eps': (0.0, 0.1),
    'attack.every_steps': 100, 'data.validation': 0.1, 'data.crop': 'pad',
    'model.experts': 4, 'model.moe_every': 2, 'model.router.noise_std': 0.0,
    'model.router.selected': 2, 'model.router.renormalize': True,
  })  # fmt: skip
  found = combine_saved(asked(mode, num_selected=1), config)
  assert found.model.router.selected == 1
  config_lib.validate(found, 1)


@pytest.mark.parametrize('mode', ['attack', 'study'])
@pytest.mark.parametrize(
  ('field', 'words'),
  [
    ('model.router.selected', 'selected=1 .*set config.num_selected'),
    ('model.compute_dtype', "compute_dtype='float32' .*leave it out"),
    ('data.image_size', "image_size=8 .*the checkpoint's own run had"),
    ('train.steps', f'steps={config_lib.default().train.steps} has no effect'),
  ],
)
def test_a_default_that_was_asked_for_is_not_another_value(mode, field, words):
  """What is left alone is the saved run's: a K of 2, say, and not 1."""
  config = asked(mode)
  run = saved(**{'model.experts': 4, 'model.router.selected': 2})
  assert combine_saved(config, run).model.router.selected == 2
  with pytest.raises(UserError, match=words):
    refuse_unchanged(config, [f'config.{field}'])


def test_what_a_mode_reads_may_be_set_to_what_it_is():
  names = ('attack.steps', 'study.name', 'num_selected', 'data.split', 'seed')
  refuse_unchanged(asked(), [f'config.{name}' for name in names])
  # Of weights that come without a configuration, back from the file's value.
  refuse_unchanged(asked(**{'data.resize': 256}), ['config.data.resize'])
