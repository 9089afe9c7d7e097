"""`robust_accuracy` on plain functions: results, refusals, warnings."""

import functools
import json

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from tests.robustness.problems import EXAMPLES, QUICK, problem
from vmoe_robust import read_results, robust_accuracy
from vmoe_robust.attacks import Budget, ensemble, label
from vmoe_robust.config import UserError
from vmoe_robust.files import locked, write_json
from vmoe_robust.report.results import SCHEMA
from vmoe_robust.robustness import arguments, same

ALONE = (
  ('fgsm', 'Linf', 0.08),
  ('mim', 'L2', 0.3),
  ('pgd', 'L1', 2.0),
  ('apgd_ce', 'L2', 0.3),
  ('apgd_dlr', 'L1', 2.0),
  ('apgd_t', 'Linf', 0.08),
  ('fab', 'L2', 0.3),
  ('fab_t', 'L1', 2.0),
  ('square', 'L2', 0.3),
  ('square', 'L1', 1.0),
)


@pytest.mark.slow
@pytest.mark.parametrize('norm, eps', [('Linf', 0.05), ('L1', 1)])
def test_what_is_reported_is_what_x_adv_does(norm, eps):
  fn, images, labels = problem()
  found = robust_accuracy(fn, images, labels, norm=norm, eps=eps, **QUICK)
  assert found.clean_accuracy == pytest.approx(40 / 44)
  delta = (found.x_adv - images).reshape(EXAMPLES, -1)
  order = {'Linf': np.inf, 'L2': 2, 'L1': 1}[norm]
  assert (np.linalg.norm(delta, order, axis=1) <= eps + 1e-6).all()
  assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
  right = np.asarray(fn(found.x_adv)).argmax(-1) == labels
  np.testing.assert_array_equal(right, found.robust)
  assert 0 < found.accuracy == right.mean() < found.clean_accuracy
  after = list(found.per_attack.values())
  assert after == sorted(after, reverse=True) and after[-1] == found.accuracy
  names = ['apgd_ce', 'apgd_t', 'fab_t', 'square']
  assert list(found.per_attack) == names
  # What was misclassified before is left alone.
  np.testing.assert_array_equal(found.x_adv[::11], images[::11])


@pytest.mark.slow
@pytest.mark.parametrize('attack, norm, eps', ALONE)
def test_each_attack_alone_breaks_some(attack, norm, eps):
  fn, images, labels = problem()
  found = robust_accuracy(
    fn, images, labels, attack=attack, norm=norm, eps=eps, **QUICK
  )
  assert found.accuracy < found.clean_accuracy
  assert list(found.per_attack) == [attack]


@pytest.mark.slow
def test_a_list_takes_what_stands_from_one_to_the_next():
  fn, images, labels = problem()
  run = functools.partial(robust_accuracy, fn, images, labels, eps=0.05)
  alone = [run(attack=name, **QUICK).robust for name in ('fgsm', 'apgd_t')]
  both = run(attack=['fgsm', 'apgd_t'], **QUICK)
  assert (both.robust <= alone[0]).all()
  np.testing.assert_array_equal(both.robust, alone[0] & alone[1])
  assert both.per_attack['fgsm'] == alone[0].mean()


@pytest.mark.slow
def test_neither_batch_nor_devices_nor_neighbours_matter():
  fn, images, labels = problem()
  run = functools.partial(
    robust_accuracy, fn, attack=['pgd', 'apgd_t'], eps=0.05
  )
  whole = run(images, labels, **QUICK)
  wide = run(images, labels, **(QUICK | dict(batch_size=64)))
  np.testing.assert_array_equal(wide.robust, whole.robust)
  part = run(images[:20], labels[:20], **QUICK)
  np.testing.assert_array_equal(part.robust, whole.robust[:20])


def test_how_many_attempts_run_at_a_time_changes_no_x_adv():
  """The first target takes more steps than the second; it counts all the same.

  One at a time the second is not tried; two at a time it is there first.
  """

  def fn(x):
    p, q = x[:, 0, 0, 0] - 0.5, x[:, 1, 1, 0] - 0.5
    near = 0.0005 - jnp.abs(p - 0.0237)
    return jnp.stack([0 * p, near, 2 * q - 0.05, 0 * p - 1], 1)

  images, labels = np.full((2, 2, 2, 1), 0.5, np.float32), np.array([0, 3])
  one, two = (
    robust_accuracy(
      fn, images, labels, attack='apgd_t', eps=0.06, targets=2,
      batch_size=batch_size, progress=False,
    )
    for batch_size in (1, 2)
  )  # fmt: skip
  assert one.prediction.tolist() == two.prediction.tolist() == [1, 0]
  np.testing.assert_array_equal(one.x_adv, two.x_adv)


def test_images_that_were_divided_twice_are_told(caplog):
  fn, images, labels = problem()
  found = robust_accuracy(fn, images / 255, labels, attack='fgsm', **QUICK)
  assert 'divided by 255 twice' in found.warnings[0]
  assert 'divided by 255 twice' in caplog.text
  found = robust_accuracy(fn, images, labels, attack='fgsm', **QUICK)
  assert not any('divided' in text for text in found.warnings)


def test_a_folder_belongs_to_one_question(tmp_path):
  fn, images, labels = problem()
  run = functools.partial(robust_accuracy, folder=tmp_path, **QUICK)
  asked = dict(model=fn, images=images, labels=labels, eps=0.05, attack='fgsm')
  first = run(**asked)
  again = run(**asked)
  np.testing.assert_array_equal(again.x_adv, first.x_adv)
  assert again.accuracy == first.accuracy
  other = dict(asked, images=images[::-1].copy())
  for changed, words in (
    (dict(asked, attack='pgd'), "attack is 'pgd' here and was 'fgsm'"),
    (dict(asked, model=lambda x: -fn(x)), "digest of the model's answers"),
    (other, 'digest of the images'),
    (dict(asked, labels=(labels + 1) % 5), 'digest of the labels'),
  ):
    with pytest.raises(UserError, match=words):
      run(**changed)
  with locked(tmp_path), pytest.raises(UserError, match='in use by another'):
    run(**asked)
  assert run(**asked).accuracy == first.accuracy  # nothing was lost


@pytest.mark.slow
def test_a_random_model_is_judged_by_its_mean():
  fn, images, labels = problem()

  def random(x, key):
    logits = fn(x)
    return logits + 3 * jax.random.normal(key, logits.shape)

  found = robust_accuracy(
    random, images, labels, attack='autoattack_rand', eps=0.05, **QUICK
  )
  assert any('outputs are random' in text for text in found.warnings)
  assert found.accuracy < found.clean_accuracy > 0.6


def test_no_numbers_are_broken_and_reported():
  fn, images, labels = problem()
  bad = lambda x: jnp.where(x[:, :1, 0, 0] > 0.9, jnp.nan, fn(x))
  count = int((images[:, 0, 0, 0] > 0.9).sum())
  found = robust_accuracy(bad, images, labels, attack='fgsm', eps=0.0, **QUICK)
  assert count and not found.robust[images[:, 0, 0, 0] > 0.9].any()
  assert any(f'{count} attacked images' in text for text in found.warnings)


@pytest.mark.slow
def test_probabilities_and_flat_outputs_are_warned_of():
  fn, images, labels = problem()
  soft = lambda x: jax.nn.softmax(fn(x))
  run = functools.partial(
    robust_accuracy, attack='fgsm', eps=0.05, images=images, labels=labels
  )
  assert any('probabilities' in t for t in run(soft, **QUICK).warnings)
  flat = lambda x: jnp.round(fn(x))
  assert any('no gradient' in t for t in run(flat, **QUICK).warnings)
  masked = robust_accuracy(
    flat,
    images,
    labels,
    attack=['apgd_ce', 'square'],
    eps=0.2,
    **(QUICK | dict(queries=200)),
  )
  assert any('square, which needs no gradient' in t for t in masked.warnings)


def test_neighbours_that_matter_are_refused():
  fn, images, labels = problem()
  dependent = lambda x: fn(x) + fn(x).mean(0)
  with pytest.raises(UserError, match='change the predictions of others'):
    robust_accuracy(dependent, images, labels, eps=0.05, **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize('classes', [2, 3])
def test_few_classes_have_simpler_losses(classes):
  fn, images, labels = problem(classes)
  found = robust_accuracy(
    fn, images, labels, attack=['apgd_t', 'apgd_dlr'], eps=0.05, **QUICK
  )
  assert found.accuracy < found.clean_accuracy
  words = ' '.join(found.warnings)
  assert 'apgd_t: the targeted_dlr loss needs 4 classes' in words
  assert ('apgd_dlr: the dlr loss needs 3' in words) == (classes == 2)


@pytest.mark.slow
def test_a_cheaper_twin_is_attacked_and_the_model_judges():
  fn, images, labels = problem()
  half = lambda x: fn(x.astype(jnp.bfloat16).astype(jnp.float32))
  run = functools.partial(
    robust_accuracy, fn, images, labels, attack='apgd_t', eps=0.05
  )
  found = run(attack_through=half, **QUICK)
  right = np.asarray(fn(found.x_adv)).argmax(-1) == labels
  np.testing.assert_array_equal(right, found.robust)
  assert abs(found.accuracy - run(**QUICK).accuracy) < 0.1


@pytest.mark.slow
def test_a_result_is_saved_in_the_one_form(tmp_path):
  fn, images, labels = problem()
  found = robust_accuracy(
    fn, (images * 255).astype(np.uint8), labels, attack='pgd', **QUICK
  )
  found.save(tmp_path / 'deep')
  saved = read_results(tmp_path / 'deep')
  schema = json.loads(SCHEMA.read_text())
  jsonschema.Draft202012Validator(schema).validate(dict(saved))
  (row,) = saved['rows']
  assert row['robust_accuracy']['value'] == found.accuracy
  assert row['per_attack']['pgd']['robust_after']['value'] == found.accuracy
  assert saved['asked']['settings']['eps'] == pytest.approx(8 / 255)
  records = saved.records
  right = np.asarray(records['prediction_after']) == np.asarray(labels)
  np.testing.assert_array_equal(right, found.robust)
  x_adv = np.load(tmp_path / 'deep' / 'x_adv.npy')
  np.testing.assert_array_equal(x_adv, found.x_adv)


@pytest.mark.parametrize(
  ('budget', 'name', 'weaker'),
  [
    (dict(iterations=100, queries=5000), 'autoattack', False),
    (dict(iterations=20, queries=5000), 'autoattack, 20 steps', True),
    (dict(iterations=100, queries=1), 'autoattack, 1 query', True),
    (dict(iterations=100, queries=60), 'autoattack, 60 queries', True),
    (dict(targets=2), 'autoattack, 2 targets', True),
    (dict(targets=4), 'autoattack, 4 targets', False),  # as many as there are
    (dict(iterations=200), 'autoattack, 200 steps', False),
    (dict(restarts=1, targets=9), 'autoattack', False),  # the authors' own
    (dict(restarts=2), 'autoattack, 2 restarts', False),
  ],
  ids=str,
)
def test_a_name_says_what_ran(budget, name, weaker):
  lengths = Budget(**budget)
  assert label('autoattack', 'linf', lengths) == name
  assert label('autoattack_standard', 'linf', lengths) == name
  notes = ensemble('autoattack', 'linf', 5, lengths).notes
  assert [f'{name} is weaker than AutoAttack' in n for n in notes] == (
    [True] * weaker
  )


def test_other_attacks_are_named_by_the_lengths_that_they_have():
  of = lambda name, *lengths, **more: label(
    name, 'linf', Budget(*lengths, **more)
  )
  assert of('apgd_ce') == of('apgd_ce', queries=1) == 'apgd_ce'
  assert of('apgd_ce', 20) == 'apgd_ce, 20 steps'
  assert of('square', 20, queries=1) == 'square, 1 query'
  assert of('fab_t', 1, restarts=2, targets=3) == 'fab_t, 1 step, 3 targets'
  assert of('pgd', 20) == 'pgd'  # has no usual length
  assert of(('pgd', 'square'), 20, 9) == 'pgd+square, 9 queries'
  assert of('apgd_ce+square', 20) == 'apgd_ce+square, 20 steps'
  assert of('autoattack_plus', restarts=1) == 'autoattack_plus, 1 restart'
  # It has no Square; and in l1 the authors have other numbers.
  assert of('autoattack_rand', queries=10) == 'autoattack_rand'
  l1 = lambda **lengths: label('autoattack', 'l1', Budget(**lengths))
  assert l1(restarts=1) == 'autoattack, 1 restart'
  assert l1(targets=5) == 'autoattack, 5 targets' and l1() == 'autoattack'
  plus = lambda **how: ensemble('autoattack_plus', 'linf', 10, Budget(**how))
  assert [s.restarts for s in plus().stages] == [5, 5, 5, 1, 1, 1]
  assert [s.restarts for s in plus(restarts=1).stages] == [1] * 6
  assert 'weaker' in plus(restarts=1).notes[0] and not plus().notes


@pytest.mark.slow
def test_results_are_named_by_their_budget():
  fn, images, labels = problem()
  found = robust_accuracy(
    fn, images[:8], labels[:8], **(QUICK | dict(iterations=2, queries=3))
  )
  assert found.settings['attack'] == 'autoattack, 2 steps, 3 queries'
  assert 'is weaker than AutoAttack' in found.warnings[0]


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(attack='autoatack'), "'autoatack' is not known"),
    (dict(norm='L3'), "norm='L3'"),
    (dict(norm='L1'), "norm='L1' has no usual radius.*such as 0.5 in L2"),
    (dict(eps=8), 'eps=8.0 is above 1'),
    (dict(eps=-0.1), 'eps=-0.1 is no radius'),
    (dict(images=np.ones((2, 6, 6, 1)) * 255), r'pixels in \[0, 1\]'),
    (dict(images=np.ones((2, 6, 6))), 'channels'),
    (dict(labels=[0]), 'one class for each of the 44'),
    (dict(labels=np.full(44, 7)), 'labels go up to 7; the model has 5'),
    (dict(labels=np.full(44, -1)), '44 of 44 labels are below 0, such as -1'),
    (dict(labels=np.arange(44) / 7), 'labels.astype.int.'),
    (dict(labels=np.eye(44)), r'float64.44, 44.; .* labels.argmax.-1.'),
    (dict(images=np.full((2, 6, 6, 1), 9)), 'images / 255 are, or uint8'),
    (dict(iterations=0), 'iterations=0 must be a whole number, 1 to'),
    (dict(queries=0), 'queries=0 must be a whole number'),
    (dict(batch_size=0), 'batch_size=0 must be a whole number'),
    (dict(batch_size=8.0), 'batch_size=8.0 must be a whole number'),
    (dict(seed=1.5), 'seed=1.5 must be a whole number, 0 to 4294967295'),
    (dict(seed=2**32), 'seed=4294967296 must be'),
    (dict(attack='mim', restarts=5), "restarts=5 has no effect .* 'mim'"),
    (dict(attack='apgd_t', restarts=2), "restarts=2 has no effect .*'apgd_t'"),
    (dict(restarts=-1), 'restarts=-1 must be'),
    (dict(targets=True), 'targets=True must be'),
    (dict(attack=[]), r'attack=\[\] names no attack'),
    (dict(attack=None), 'attack=None names no attack'),
    (dict(attack=['pgd', 'AA']), 'has autoattack, which stands alone'),
    (dict(attack=[['apgd_ce', 'square']]), 'names no attack'),
    (dict(eps='8/255'), "eps='8/255' is no number; give one radius"),
    (dict(eps=np.array([0.1, 0.2])), 'is no number; give one radius'),
    (dict(eps=float('nan')), 'eps=nan is no radius'),
    (dict(norm=0), 'norm=0 is not known'),
    (dict(images=np.full((2, 6, 6, 1), np.nan)), r'pixels in \[0, 1\]'),
    (dict(images=np.full((2, 6, 6, 1), 'a')), 'images are <U1; give uint8'),
    (dict(images=[[[1.0]], [[1.0, 2.0]]]), 'images are no array .*inhomogen'),
    (dict(iterations=2**40), 'iterations=1099511627776 must be'),
    (dict(restarts=2**40), 'restarts=1099511627776 must be'),
    (dict(folder=3), 'folder=3 is no path'),
  ],
  ids=str,
)
def test_refusals(changes, words):
  fn, images, labels = problem()
  asked = QUICK | dict(images=images, labels=labels) | changes
  # The tests' own check of types would come first.
  unchecked = robust_accuracy.__wrapped__
  with pytest.raises(UserError, match=words):
    unchecked(fn, **asked)


@pytest.mark.parametrize('convert', [jnp.asarray, np.array])
def test_logits_are_real(convert):
  _, images, labels = problem()

  def fn(x):
    return convert(x).reshape(len(x), -1)[:, :5] * 1j

  with pytest.raises(UserError, match='returns complex64; it must return log'):
    robust_accuracy(fn, images, labels, **QUICK)


@pytest.mark.parametrize(
  ('given', 'plain'),
  [
    (dict(norm='inf', attack='FGSM'), dict(norm='Linf')),
    *(
      pytest.param(*pair, marks=pytest.mark.slow)
      for pair in (
        (dict(norm=np.inf), dict(norm='Linf', eps=8 / 255)),
        (dict(norm=2, eps=0.5), dict(norm='L2', eps=0.5)),
        (dict(norm='l1', eps=np.float32(0.5)), dict(norm='L1', eps=0.5)),
      )
    ),
  ],
  ids=str,
)
def test_plain_meanings_are_understood(given, plain):
  fn, images, labels = problem()
  unchecked = robust_accuracy.__wrapped__
  run = functools.partial(unchecked, fn, images[:8], labels[:8])
  given, plain = (QUICK | dict(attack='fgsm') | how for how in (given, plain))
  a, b = run(**given), run(**plain)
  assert a.settings == b.settings
  np.testing.assert_array_equal(a.x_adv, b.x_adv)


@pytest.mark.parametrize('name', ['AutoAttack', 'auto-attack', 'AA'])
def test_autoattack_has_many_spellings(name):
  assert arguments.attack(name) == 'autoattack'


@pytest.mark.slow
def test_the_tail_is_not_paid_in_full_batches():
  """Of 100 images 23 stand: the program has 24 slots."""
  fn, images, labels = problem(examples=100)
  labels = np.asarray(fn(images)).argmax(-1)
  labels[23:] = (labels[23:] + 1) % 5
  sizes = []

  def seen(x):
    sizes.append(len(x))  # traced once for each size of each program
    return fn(x)

  robust_accuracy(
    seen,
    images,
    labels,
    attack=['apgd_ce', 'square'],
    eps=0.001,
    **(QUICK | dict(batch_size=256)),
  )
  devices = jax.device_count()
  first = -(-100 // devices) * devices
  fits = -(-23 // devices) * devices
  # The guard and the clean pass see all; the attacks only what stands.
  assert sizes.count(first) < 10 and sizes.count(fits) >= 5


def test_a_list_of_one_attack_is_that_attack():
  assert arguments.attack(['AA']) == 'autoattack'
  assert arguments.attack(('pgd',)) == 'pgd'
  assert arguments.attack(['pgd', 'square']) == ('pgd', 'square')


def test_a_folder_is_of_the_gradients_that_were_followed(tmp_path):
  fn, images, labels = problem()
  blind = lambda x: jax.lax.stop_gradient(fn(x))
  run = functools.partial(
    robust_accuracy, fn, images, labels, eps=0.05, attack='fgsm'
  )
  assert run(attack_through=blind, folder=tmp_path).warnings
  with pytest.raises(UserError, match='digest of what is followed'):
    run(folder=tmp_path)


def test_a_folder_is_of_the_function_that_was_attacked(tmp_path):
  """Of one whose gradient nobody follows, too."""
  fn, images, labels = problem()
  run = functools.partial(
    robust_accuracy, fn, images, labels, eps=0.1, attack='square', queries=9
  )
  run(attack_through=lambda x: 0 * fn(x), folder=tmp_path)
  with pytest.raises(UserError, match='digest of what is followed'):
    run(folder=tmp_path)


def test_a_run_goes_on_in_batches_of_another_size(tmp_path):
  fn, images, labels = problem()
  mlp = lambda x: jnp.tanh(fn(x)) @ jnp.linspace(-1.0, 1.0, 25).reshape(5, 5)
  run = functools.partial(
    robust_accuracy, mlp, images, labels, eps=0.05, attack='fgsm'
  )
  first = run(folder=tmp_path, batch_size=40)
  for size in (1, 7, 16):
    again = run(folder=tmp_path, batch_size=size)
    np.testing.assert_array_equal(again.x_adv, first.x_adv)


def test_a_folder_is_on_this_machine(tmp_path, monkeypatch):
  fn, images, labels = problem()
  monkeypatch.chdir(tmp_path)
  for folder in ('gs://bucket/run', '~nobody-of-this-name/run'):
    with pytest.raises(UserError, match='folder'):
      robust_accuracy(fn, images, labels, folder=folder, attack='fgsm')
  assert not list(tmp_path.iterdir())


def test_labels_of_several_lengths_are_refused():
  _, images, _ = problem()
  with pytest.raises(UserError, match='labels are no array'):
    arguments.images_and_labels(images[:2], [[0], [1, 2]])


def test_names_and_labels_are_those_that_there_are():
  fn, images, labels = problem()
  found = robust_accuracy(
    fn, images, labels, eps=0.05, attack='apgd_t', iterations=2, targets=20
  )
  assert found.settings['attack'] == 'apgd_t, 2 steps, 4 targets'
  with pytest.raises(UserError, match='labels are between 4294967296 and'):
    robust_accuracy(fn, images, labels.astype(np.int64) + 2**32, eps=0.05)


def test_apgd_in_l1_has_no_single_step():
  ensemble('apgd_ce', 'l1', 5, Budget(2))
  with pytest.raises(UserError, match='takes 2 steps at least, not 1'):
    ensemble('apgd_ce', 'l1', 5, Budget(1))


def test_the_speed_of_nothing_is_unknown():
  fn, images, labels = problem()
  wrong = (np.asarray(fn(images)).argmax(-1) + 1).astype(labels.dtype) % 5
  found = robust_accuracy(fn, images, wrong, eps=0.05, attack='fgsm')
  assert found.accuracy == found.clean_accuracy == 0
  assert found.findings.speed == {'attacked_images_per_second': None}


def blind_to_levels(fn):
  """As `fn` on images of 256 levels, and of one class between these levels."""

  def model(x):
    levels = jnp.round(x * 255) / 255
    off = jnp.abs(x - levels).max((1, 2, 3)) > 1e-4
    wrong = jax.nn.one_hot(jnp.zeros(len(x), int), 5) * 9
    return jnp.where(off[:, None], wrong, fn(x))

  return model


def kept_in(folder):
  """A function, and an attack of images of 256 levels that a folder keeps."""
  fn, images, labels = problem()
  images = np.round(images * 255).astype(np.uint8)
  run = functools.partial(
    robust_accuracy,
    images=images,
    labels=labels,
    eps=0.1,
    attack='fgsm',
    folder=folder,
    **QUICK,
  )
  return fn, run


def test_a_model_that_differs_beside_the_images_is_another(tmp_path):
  """Clean images cannot tell them apart."""
  fn, run = kept_in(tmp_path)
  run(fn)
  with pytest.raises(UserError, match="digest of the model's answers"):
    run(blind_to_levels(fn))


def test_what_comes_from_a_folder_is_judged_again(tmp_path, monkeypatch):
  """By a model that answers alike on what it is known again by."""
  fn, run = kept_in(tmp_path)
  first = run(fn)
  assert first.accuracy == run(fn).accuracy
  monkeypatch.setattr(same, 'identity', lambda *_: {})
  (tmp_path / 'run.json').unlink()
  assert run(fn).accuracy == first.accuracy
  with pytest.raises(UserError, match='44 are not as they were stored'):
    run(lambda x: 2 * fn(x))


@pytest.mark.parametrize('harm', ['lost', 'changed'])
def test_attacked_images_that_are_damaged_are_refused(tmp_path, harm):
  fn, images, labels = problem()
  run = functools.partial(
    robust_accuracy, fn, images, labels, attack='fgsm', folder=tmp_path, **QUICK
  )
  run()
  stored = [p for p in (tmp_path / 'x_adv').rglob('*') if p.is_file()]
  [chunk] = [path for path in stored if path.suffix != '.json']
  if harm == 'lost':
    chunk.unlink()
  else:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
  with pytest.raises(UserError, match='damaged .*delete the folder'):
    run()


def test_a_piece_that_is_damaged_is_done_again(tmp_path, caplog):
  fn, images, labels = problem()
  run = functools.partial(
    robust_accuracy, fn, images, labels, attack='fgsm', folder=tmp_path, **QUICK
  )
  first = run()
  [piece] = tmp_path.glob('*-done.npz')
  for data in (b'', piece.read_bytes()[:99]):
    piece.write_bytes(data)
    np.testing.assert_array_equal(run().x_adv, first.x_adv)
    assert f'{piece} is damaged' in caplog.text
    caplog.clear()
  (tmp_path / 'run.json').write_bytes(b'')
  with pytest.raises(UserError, match=r'run.json is damaged .* delete'):
    run()


def test_a_full_disk_does_not_end_an_attack(tmp_path, monkeypatch, caplog):
  fn, images, labels = problem()
  run = functools.partial(
    robust_accuracy, fn, images, labels, attack='fgsm', **QUICK
  )

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr('numpy.savez', full)
    found = run(folder=tmp_path)
  assert found.accuracy == run().accuracy
  assert 'cannot be stored' in caplog.text
  assert not list(tmp_path.glob('*.npz'))


def test_results_of_the_same_images_are_known(tmp_path):
  fn, images, labels = problem()
  images = np.round(images * 255).astype(np.uint8)
  floats = images.astype(np.float32) / np.float32(255)
  run = functools.partial(robust_accuracy, fn, attack='fgsm', **QUICK)
  first = run(images, labels).fingerprint
  assert run(floats, labels).fingerprint == first
  assert run(floats, labels.tolist()).fingerprint == first
  assert run(images[::-1].copy(), labels).fingerprint != first
  assert run(images, (labels + 1) % 5).fingerprint != first


def test_a_save_that_fails_leaves_no_result_of_another(tmp_path, monkeypatch):
  fn, images, labels = problem()
  run = functools.partial(robust_accuracy, fn, images, labels, **QUICK)
  run(attack='fgsm').save(tmp_path)
  other = run(attack='fgsm', eps=0.1)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch, pytest.raises(OSError, match='space'):
    patch.setattr('numpy.save', full)
    other.save(tmp_path)
  with pytest.raises(UserError, match='cannot be read'):
    read_results(tmp_path)
  other.save(tmp_path)
  saved = read_results(tmp_path)
  assert saved['data']['fingerprint'] == other.fingerprint
  np.testing.assert_array_equal(np.load(tmp_path / 'x_adv.npy'), other.x_adv)
  # The results of a program are not written over.
  path = tmp_path / 'results.json'
  run_of = dict(saved) | {'asked': saved['asked'] | {'config': {}}}
  write_json(path, run_of)
  with pytest.raises(UserError, match='of another run'):
    other.save(tmp_path)
