"""The life of a run on a Cloud TPU pod, in a cloud that is a folder."""

import json
import os
import time

import pytest

from tests.slow import all_slow_but

POD = ['--name=moe', '--project=proj', '--zone=us-west4-a']
SHAPE = ['--type=v5litepod-16', '--spot']
# The end of a run whose processes have all started.
TOGETHER = 'until [ $(wc -l < "$FAKE_CLOUD/runs") = {} ]; do sleep 0.05; done; '


def test_up_waits_installs_starts_follows_and_ends(cloud, capfd):
  queue = ['ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING']
  (cloud.folder / 'states.json').write_text(json.dumps(queue))
  cloud.run_is(TOGETHER.format(4) + 'echo the table')
  cloud.tpu('up', *POD, *SHAPE, '--slices=2', *cloud.run_flags())
  said = capfd.readouterr().out
  for word in (*queue, 'the table', 'finished'):
    assert word in said
  share = cloud.share
  started = cloud.starts()
  command = (
    f'-m vmoe_robust.main --distributed --workdir={share}/a run '
    '--config=configs/digits_moe.py'
  )
  workers = [f'n{n}-w{w}' for n in (0, 1) for w in (0, 1)]
  assert started == [f'{worker}: {command}' for worker in workers]
  # The working tree is on each worker, and the folder is mounted.
  for worker in workers:
    home = cloud.folder / 'homes' / worker
    assert (home / 'vmoe_robust/configs/digits_moe.py').exists()
    assert (
      f'mount -t nfs 10.0.0.2:/vol1 {share}' in (home / 'mounted').read_text()
    )
    # Each process's errors are kept.
    errors = share / 'a run/logs' / f'{worker}.err'
    assert errors.read_text() == f'trouble of {worker}\n'
  assert (share / 'a run/logs/n0-w0.out').read_text() == 'the table\n'
  cloud.tpu('log', *POD, '--errors')
  errors = capfd.readouterr().out
  assert all(f'trouble of {worker}' in errors for worker in workers)
  # Done is done: nothing is started again.
  before = len((cloud.folder / 'runs').read_text())
  cloud.tpu('up', *POD, *SHAPE, '--slices=2', *cloud.run_flags())
  assert len((cloud.folder / 'runs').read_text()) == before
  # Another run on the same pod is.
  cloud.run_is('echo another table')
  cloud.tpu('up', *POD, *SHAPE, '--slices=2', *cloud.run_flags('another'))
  assert (share / 'another/logs/n0-w0.out').exists()
  cloud.tpu('delete', *POD)
  assert not (cloud.folder / 'homes').exists()


@pytest.mark.parametrize(
  'end',
  all_slow_but(
    ['exit 1'],
    ['exit 1', 'echo "stopped at step 1" >&2; exit 130', 'sleep 60'],
  ),
)
def test_a_preempted_run_is_resumed(cloud, capfd, end):
  """Whether it crashes, saves in time or hangs when the machines go."""
  cloud.run_is(f"""
    if [ -e "$FAKE_CLOUD/saved" ]; then echo resumed from step 1; exit 0; fi
    touch "$FAKE_CLOUD/saved"
    printf SERVICE > "$FAKE_CLOUD/taken"
    {end}
  """)
  cloud.tpu('up', *POD, *SHAPE, *cloud.run_flags())
  assert 'was taken away' in capfd.readouterr().out
  made = [v for v in cloud.verbs() if v in ('create', 'delete', 'scp')]
  assert made == ['create', 'scp', 'delete', 'create', 'scp']
  first, second = [c for c in cloud.calls() if c[4] == 'create']
  assert first == second and '--spot' in second
  starts = cloud.starts()
  first, second = [s for s in starts if s.startswith('n0-w0')]
  assert first == second
  out = cloud.share / 'a run/logs/n0-w0.out'
  assert out.read_text().endswith('resumed from step 1\n')


@pytest.mark.slow
def test_a_run_that_stopped_on_machines_that_stay_is_started_again(cloud):
  """As when a host is mended: SIGTERM, and the pod is still there."""
  cloud.run_is("""
    if [ -e "$FAKE_CLOUD/saved" ]; then echo resumed; exit 0; fi
    touch "$FAKE_CLOUD/saved"
    echo 'stopped at step 1 and saved; the same command resumes' >&2
    exit 130
  """)
  cloud.tpu('up', *POD, *SHAPE, *cloud.run_flags())
  assert cloud.verbs().count('create') == 1
  assert cloud.verbs().count('scp') == 2


@pytest.mark.slow
def test_a_run_that_fails_is_not_repeated_for_ever(cloud):
  cloud.run_is('echo "error: no such data" >&2; exit 1')
  message = cloud.refused('up', *POD, *SHAPE, *cloud.run_flags())
  assert 'exit 1' in message and 'log --errors' in message
  assert cloud.verbs().count('scp') == 1
  # Once it is mended, the same command goes on.
  cloud.run_is('echo done')
  cloud.tpu('up', *POD, *SHAPE, *cloud.run_flags())
  assert cloud.verbs().count('create') == 1


def test_a_lost_connection_ends_nothing(cloud):
  cloud.run_is(TOGETHER.format(2) + 'echo done')
  cloud.tpu('create', *POD, *SHAPE)
  cloud.tpu('install', *POD, '--share=10.0.0.2:/vol1')
  cloud.tpu('start', *POD, *cloud.run_flags()[1:])
  assert 'running already' in cloud.refused(
    'start', *POD, *cloud.run_flags()[1:]
  )
  lost = ['ssh: connect to host 10.1.1.1 port 22: Connection timed out'] * 3
  (cloud.folder / 'errors.json').write_text(json.dumps({'ssh': lost}))
  cloud.tpu('watch', *POD, *SHAPE, *cloud.run_flags())
  assert len(cloud.starts()) == 2


def test_a_pod_that_another_run_uses_is_left_alone(cloud):
  cloud.run_is('sleep 30')
  cloud.tpu('create', *POD, *SHAPE)
  cloud.tpu('install', *POD, '--share=10.0.0.2:/vol1')
  cloud.tpu('start', *POD, *cloud.run_flags()[1:])
  for state in cloud.folder.glob('homes/*/vmoe_robust/.launch/pid'):
    # Its own session: what hangs up the connection's does not reach it.
    pid, end = int(state.read_text()), time.monotonic() + 30
    while os.getsid(pid) != pid and time.monotonic() < end:
      time.sleep(0.05)  # it has yet to run `setsid`
    assert os.getsid(pid) == pid
  message = cloud.refused('watch', *POD, *SHAPE, *cloud.run_flags('b'))
  assert 'busy with another run' in message
  cloud.tpu('delete', *POD)


def test_no_room_is_asked_again_and_no_quota_is_not(cloud):
  cloud.run_is('echo done')
  (cloud.folder / 'pod').write_text('1')
  full = 'There is no more capacity in the zone "us-west4-a"'
  (cloud.folder / 'failed').write_text(full)
  cloud.tpu('up', *POD, *SHAPE, *cloud.run_flags())
  assert cloud.verbs()[:2] == ['delete', 'create']
  (cloud.folder / 'failed').write_text(
    "Quota 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' exhausted. "
    'Limit 16 in region us-west4'
  )
  message = cloud.refused('watch', *POD, *SHAPE, *cloud.run_flags())
  assert 'no quota left for v5litepod-16' in message
  assert 'TPUV5sPreemptibleLitepod' in message and '`delete`' in message


def test_a_pod_that_a_user_suspended_is_left_alone(cloud):
  (cloud.folder / 'pod').write_text('1')
  (cloud.folder / 'taken').write_text('USER')
  message = cloud.refused('watch', *POD, *SHAPE, *cloud.run_flags())
  assert 'suspended by a user' in message
  assert cloud.verbs() == []
