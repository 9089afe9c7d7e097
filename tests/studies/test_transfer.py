import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.evaluate.conftest import InMemory
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config import UserError, default, validate
from vmoe_robust.evaluate.classifier import restore
from vmoe_robust.evaluate.combine import combine
from vmoe_robust.evaluate.job import Job, write
from vmoe_robust.models import Model
from vmoe_robust.studies import questions, routing_change, transfer
from vmoe_robust.studies.conditions import of


class Half(Model):
  """Class 0 where one half of the image is brighter than 1/2, else class 1."""

  def apply(self, params, images, experts, mask):
    score = 100 * ((images * params).sum((1, 2, 3)) / 32 - 0.5)
    return jnp.stack([score, -score, *2 * [-1e3 + 0 * score]], -1), None


class Grey:
  """One image of class 0, slightly brighter than 1/2."""

  num_classes, channels, multi_label = 4, 1, False
  fingerprint, lengths = 'of a test', {}
  class_names = ('a', 'b', 'c', 'd')

  def __len__(self):
    return 1

  def __getitem__(self, i):
    return {'image': np.full((8, 8, 1), 140, np.uint8), 'label': 0}

  def describe(self, i):
    return f'example {i}'


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'transfer'
  config.study.transfer.batch_size = 8
  config.study.routing_change.batch_size = 8
  config.attack.update(dict(eps=(0.1,), random_start=False))
  return config


def test_models_of_other_pixels_do_not_break_each_other(
  config, model_of, opened, tmp_path, check_form
):
  module = model_of(config)[0].module
  left = np.zeros((8, 8, 1), np.float32)
  left[:, :4] = 1
  job = opened(config, Grey(), Half(module, (8, 8, 1)), left, tmp_path)
  other = dataclasses.replace(job.classifier, params=1 - left, where='right')
  first = dataclasses.replace(job.classifier, where='left')
  found = questions.answer(transfer.ask_of(job, [first, other]))
  write(job, found)
  results = check_form(tmp_path)
  assert results['summary']['models'] == ['left', 'right']
  after = lambda name: of(found.columns, name)['prediction_after'].tolist()
  for one, another in (('left', 'right'), ('right', 'left')):
    assert after(f'clean, {one}') == [0]
    assert after(f'{one} to {one}, eps 25.5/255') == [1]
    assert after(f'{one} to {another}, eps 25.5/255') == [0]
  assert found.figures[0].values == [[1, 1], [0, 1], [1, 0]]
  by = {row['condition']: row for row in results['rows']}
  more = by['left to right, eps 25.5/255']['more_than_its_own']
  assert more['only_first'] == 1 and more['difference']['value'] == 1


@pytest.mark.slow
def test_to_itself_it_is_the_models_own_attack(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  source = in_memory(11)
  job = opened(config, source, model, params)
  found = questions.answer(
    transfer.ask_of(job, [job.classifier, job.classifier])
  )
  name = str(job.workdir.name)
  known = routing_change.run(opened(config, source, model, params)).columns
  known = of(known, 'eps 25.5/255')['prediction_after']
  for one in (1, 2):
    for another in (1, 2):
      condition = f'{name} #{one} to {name} #{another}, eps 25.5/255'
      after = of(found.columns, condition)['prediction_after']
      np.testing.assert_array_equal(after, known)


def test_each_model_is_attacked_by_the_loss_that_it_was_trained_with(
  config, model_of, opened, monkeypatch
):
  job = opened(config, Grey(), *model_of(config))
  own = config.copy_and_resolve_references()
  own.train.loss = 'sigmoid'
  other = dataclasses.replace(job.classifier, config=own)
  raised, attack = [], transfer.adversarial.attack

  def seen(forward, config):
    raised.append(config.train.loss)
    return attack(forward, config)

  monkeypatch.setattr(transfer.adversarial, 'attack', seen)
  transfer.ask_of(job, [job.classifier, other])
  assert raised == ['softmax', 'sigmoid']


@pytest.mark.slow
def test_a_dense_model_takes_part(config, in_memory, model_of, opened):
  job = opened(config, in_memory(8), *model_of(config))
  dense = config.copy_and_resolve_references()
  dense.model.experts = 0
  model, params = model_of(dense)
  other = dataclasses.replace(
    job.classifier, model=model, params=params, config=dense, where='dense'
  )
  found = questions.answer(transfer.ask_of(job, [job.classifier, other]))
  assert len(found.rows) == 2 + 4
  assert found.rows[-1]['accuracy']['n'] == 8


@pytest.mark.parametrize(
  ('others', 'words'),
  [
    ((), 'names no second checkpoint'),
    (('/nowhere/at/all',), 'nowhere/at/all'),
  ],
)
def test_a_missing_second_checkpoint_is_told(
  config, in_memory, model_of, opened, others, words
):
  config.study.transfer.others = others
  job = opened(config, in_memory(8), *model_of(config))
  with pytest.raises(UserError, match=rf'transfer\.others.*{words}') as error:
    transfer.run(job)
  assert '\n' not in str(error.value)


def test_others_are_a_tuple(config):
  config.study.transfer.others = (3,)
  with pytest.raises(UserError, match='is no tuple of work directories'):
    validate(config, 1)


def test_weights_without_a_configuration_are_told_the_same(
  config, model_of, tmp_path
):
  _, params = model_of(config)
  where = str(tmp_path / 'weights.npz')
  np.savez(where, **{'/'.join(k): v for k, v in flatten_dict(params).items()})
  asked = default()
  asked.mode, asked.study.name, asked.checkpoint = 'study', 'transfer', where
  asked.study.transfer.others, asked.num_selected = (where,), 1
  asked.data.update(dict(name='digits', split='test'))
  asked.model.update(dict(mean=(0.0,), std=(1.0,)))
  with contextlib.closing(open_weights(where)) as weights:
    asked = combine(asked, weights)
    first = restore(weights, asked)
  source = InMemory(8)
  other, told = transfer._opened(where, Job(first, source, asked, tmp_path))
  # Weights alone say neither what they were trained on nor their classes.
  [line] = told
  assert 'classes are compared by their numbers' in line
  images = source.images.astype(np.float32) / 255
  np.testing.assert_array_equal(first(images), other(images))
  assert transfer._used([first, other]) == {
    'mean': 2 * ['(0.0,)'],
    'std': 2 * ['(1.0,)'],
    'selected': [1, 1],
  }


def test_what_another_model_was_trained_on_is_told(
  config, in_memory, model_of, opened, monkeypatch
):
  """The cautions of config.checkpoint are of every model."""
  job = opened(config, in_memory(8), *model_of(config))
  monkeypatch.setattr(
    transfer, '_opened', lambda where, job: (job.classifier, ['it was seen'])
  )
  config.study.transfer.others = ('a', 'b')
  question = transfer.ask(job)
  warnings = question.findings.args[3]
  assert warnings == ['a: it was seen', 'b: it was seen']
