"""Every file in configs/ loads as main loads it and is a valid experiment."""

import ast
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from vmoe_robust import config as config_lib
from vmoe_robust import presets

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
TWINS = [name for name in NAMES if name.replace('moe', 'vit') in NAMES]
TWINS = [name for name in TWINS if 'moe' in name]

DEVICES = 8


@pytest.fixture
def load(monkeypatch):
  def load(name, *arguments):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    argv = ['main', f'--config={CONFIGS / name}.py', *arguments]
    monkeypatch.setattr('sys.argv', argv)  # which ml_collections reads too
    values(argv)
    return values.config

  return load


def fields(config, prefix='config'):
  for name, value in config.items():
    if isinstance(value, config_lib.ConfigDict):
      yield from fields(value, f'{prefix}.{name}')
    else:
      yield f'{prefix}.{name}'


def test_the_experiments_are_there():
  assert set(NAMES) == {
    *('digits_moe', 'digits_vit', 'cifar10_moe', 'cifar10_vit'),
    *('digits_moe_adv', 'digits_vit_adv'),
    *('cifar10_moe_adv', 'cifar10_vit_adv', 'finetune_vmoe_s32_adv'),
    *('moe_b16', 'moe_b32', 'moe_s32', 'moe_l16', 'moe_h14'),
    *('vit_b16', 'vit_b32', 'vit_s32', 'vit_l16'),
    *('vit_bp32', 'vit_bpp32', 'vit_bppp32'),
    *(
      'study',
      'theory',
      'attack_pgd',
      'attack_autoattack',
      'corruptions',
      'certify',
    ),
    *('attack_vmoe_s32', 'attack_vmoe_s32_384', 'attack_vmoe_b16_384'),
    *('finetune_384', 'finetune_vmoe_s32', 'finetune_vmoe_b16'),
  }
  assert len(TWINS) == 8


@pytest.mark.parametrize('name', NAMES)
def test_is_valid_and_adds_no_field(load, name):
  config = load(name)
  config_lib.validate(config, DEVICES)
  assert list(fields(config)) == list(fields(config_lib.default()))
  again = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.differences(config, again) == []


@pytest.mark.parametrize('name', NAMES)
def test_docstring_says_how_where_and_what(name):
  text = ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))
  command = f'python -m vmoe_robust.main --config=configs/{name}.py'
  assert command in text
  assert '\nHardware: ' in text and '\nExpected: ' in text


@pytest.mark.parametrize('name', NAMES)
def test_arguments_in_the_docstring_work(load, name):
  text = ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))
  words = [word.strip('.,') for word in text.replace("'", '').split()]
  load(name, *(word for word in words if word.startswith('--config.')))


@pytest.mark.parametrize('name', TWINS)
def test_twins_differ_in_their_experts_alone(load, name):
  sparse, dense = load(name), load(name.replace('moe', 'vit'))
  assert config_lib.moe_blocks(sparse.model)
  assert not config_lib.moe_blocks(dense.model)
  for difference in config_lib.differences(sparse, dense):
    field = difference.partition('=')[0]
    assert field.startswith(
      ('config.model.experts', 'config.model.moe_', 'config.model.router.')
    )
  if name in ('digits_moe', 'cifar10_moe'):
    assert sparse.model.router.selected == 1  # of equal active FLOPs


def test_overrides_are_typed_and_a_typo_is_refused(load):
  assert load('digits_moe', '--config.train.steps=7').train.steps == 7
  with pytest.raises(flags.IllegalFlagValueError):
    load('digits_moe', '--config.train.steps=many')
  with pytest.raises(Exception, match='stepz'):
    load('digits_moe', '--config.train.stepz=7')


def test_the_radii_are_those_of_the_paper():
  eps = presets.PAPER_EPS
  assert len(eps) == 26 and list(eps) == sorted(eps)
  assert eps[0] == 0.0005 and eps[6] == 1 / 255 and eps[-1] == 20 / 255
