"""Studies of one start, about x_adv that are made once."""

import dataclasses

import jax
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.evaluate import adversarial
from vmoe_robust.studies import STUDIES, questions

NAMES = ('routing_change', 'pruning', 'substitution')
BATCHES, STEPS = 2, 2
PICTURES = STEPS + 2  # gradients for the images that routing_change shows


@pytest.fixture
def config(config):
  config.mode = 'study'
  config.model.layers = 1
  config.attack.steps = STEPS
  return config


@pytest.fixture
def jobs(config, in_memory, model_of, opened):
  """A job for each name, of one model and the same 11 images."""
  model, params = model_of(config)
  source = in_memory(11)

  def one(name, settings):
    own = config.copy_and_resolve_references()
    own.study.name = name
    own.study[name].update(settings)
    return opened(own, source, model, params)

  def make(names=NAMES, **settings):
    return [one(name, settings) for name in names]

  return make


@pytest.fixture
def gradients(monkeypatch):
  """How often the loss of the class was raised, on the devices."""
  seen, loss = [], adversarial.target.loss

  def counted(*settings):
    value = loss(*settings)

    def count(logits, aux, goal):
      jax.debug.callback(lambda: seen.append(1))
      return value(logits, aux, goal)

    return count

  monkeypatch.setattr(adversarial.target, 'loss', counted)

  def number():
    jax.effects_barrier()
    return len(seen)

  return number


def ask(jobs):
  return [STUDIES[job.config.study.name].ask(job) for job in jobs]


def equal(one, other):
  assert one.rows == other.rows and one.summary == other.summary
  for name, column in one.columns.items():
    np.testing.assert_array_equal(column, other.columns[name])


@pytest.mark.slow
def test_three_studies_attack_each_batch_once(jobs, gradients, config):
  together = questions.answers(ask(jobs()))
  # At the image, at each step, and at the last of them.
  once = BATCHES * len(config.attack.eps) * (STEPS + 2)
  assert gradients() == once + PICTURES
  for job, found in zip(jobs(), together, strict=True):
    before = gradients()
    name = job.config.study.name
    equal(STUDIES[name].run(job), found)
    own = PICTURES if name == 'routing_change' else 0
    assert gradients() - before == once + own


@pytest.mark.slow
def test_a_start_that_was_cut_short_goes_on(jobs, gradients, monkeypatch):
  names = NAMES[:2]
  whole = questions.answers(ask(jobs(names)))
  once = gradients() - PICTURES
  cut, finder, calls = jobs(names), questions.under.finder, []

  def stopping(job, program):
    find = finder(job, program)

    def found(batch, given):
      calls.append(job.config.study.name)
      if calls.count('pruning') == 2:
        raise KeyboardInterrupt
      return find(batch, given)

    return found

  with monkeypatch.context() as patch:
    patch.setattr(questions.under, 'finder', stopping)
    with pytest.raises(KeyboardInterrupt):
      questions.answers(ask(cut))
  # Of the second batch one study is done; it is not asked again.
  assert calls == [*names, *names]
  again = []
  monkeypatch.setattr(
    questions.under,
    'finder',
    lambda job, program: (
      lambda *given: (
        again.append(job.config.study.name) or finder(job, program)(*given)
      )
    ),
  )
  for one, other in zip(questions.answers(ask(cut)), whole, strict=True):
    equal(one, other)
  assert again == ['pruning']
  # Two batches, of the start that was cut short, and the second one again.
  assert gradients() == 2 * once + once // BATCHES + 2 * PICTURES


def test_only_the_same_x_adv_are_shared(jobs, config):
  change, pruning, other = ask(jobs())
  assert questions.groups({'a': change, 'b': pruning, 'c': other}) == [
    ['a', 'b', 'c']
  ]
  (smaller,) = ask(jobs(('substitution',), batch_size=4))
  (own,) = ask(jobs(('pruning',), attack_pruned=True))
  config.attack.steps += 1
  (longer,) = ask(jobs(('routing_change',)))
  named = dict(zip('abcde', (change, smaller, own, longer, other), strict=True))
  assert questions.groups(named) == [['a', 'e'], ['b'], ['c'], ['d']]


@pytest.mark.slow
def test_one_that_does_not_fit_does_not_stop_the_others(jobs):
  """It is found out while its program is traced, and by its findings."""
  whole = questions.answers(ask(jobs(('routing_change',))))
  first, margin, last = jobs(('routing_change', 'margin', 'substitution'))
  margin.config.study.margin.tokens = 99

  def refuses(columns, skipped):
    raise UserError('no group is whole')

  one, two, three = ask([first, margin, last])
  asked = [one, two, dataclasses.replace(three, findings=refuses)]
  found = questions.answers(asked)
  equal(found[0], whole[0])
  assert [type(one) for one in found[1:]] == [UserError, UserError]
  assert 'margin.tokens=99' in str(found[1]) and 'whole' in str(found[2])
  with pytest.raises(UserError, match='tokens=99'):
    questions.answer(two)
