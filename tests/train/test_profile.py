import jax.numpy as jnp

from vmoe_robust.train.profile import Profile


def walk(profile, steps):
  for step in steps:
    profile.before(step)
    profile.after(step, {'loss': jnp.float32(step) * 2})
  profile.close()


def test_a_trace_is_written_of_the_steps_asked_for(tmp_path):
  for name, steps, walked in (
    ('two', (2, 3), range(1, 6)),
    ('resumed_inside', (1, 3), range(2, 4)),
    ('stopped_inside', (2, 9), range(1, 4)),
  ):
    walk(Profile(tmp_path / name, steps), walked)
    assert list((tmp_path / name).rglob('*.xplane.pb')), name


def test_nothing_is_written_otherwise(tmp_path):
  walk(Profile(tmp_path / 'never', ()), range(1, 4))
  walk(Profile(tmp_path / 'past', (1, 2)), range(3, 5))
  assert not list(tmp_path.iterdir())


def test_a_trace_that_fails_is_a_warning(tmp_path, caplog):
  (tmp_path / 'file').touch()
  walk(Profile(tmp_path / 'file' / 'profile', (1, 2)), range(1, 4))
  (record,) = caplog.records
  assert 'profile gets no trace' in record.getMessage()
  walk(Profile(tmp_path / 'next', (1, 2)), range(1, 4))  # of the same process
  assert list((tmp_path / 'next').rglob('*.xplane.pb'))
