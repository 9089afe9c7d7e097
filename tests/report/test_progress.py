import io
import os
import pty
import re
import resource
import termios
import time

import pytest

from vmoe_robust.report import progress as progress_lib
from vmoe_robust.report.progress import Progress, Stages, duration
from vmoe_robust.report.terminal import put


def test_plain_lines_come_now_and_then():
  stream = io.StringIO()
  progress = Progress(100, 'train', stream=stream)
  for done in range(1, 101):
    progress.update(done, images=8, text=f'loss {done}')
    time.sleep(0.0005)
  progress.close()
  first, last = stream.getvalue().splitlines()
  assert first == 'train step 1/100 (1%), loss 1'
  assert re.fullmatch(
    r'train step 100/100 \(100%\), [\d,]+ images/s, 0 s left, loss 100', last
  )
  assert '\r' not in stream.getvalue()


def test_speed_leaves_out_the_time_before_the_first_update():
  stream = io.StringIO()
  progress = Progress(10, 'attack', unit='batch', done=4, stream=stream)
  time.sleep(0.3)  # compiling
  progress.update(5, images=1000)
  time.sleep(0.05)
  progress.update(6, images=10)
  progress.close()
  last = stream.getvalue().splitlines()[-1]
  rate = float(re.search(r'([\d,.]+) images/s', last)[1].replace(',', ''))
  assert 20 < rate <= 200  # 10 images in .05 s or, on a busy machine, more


@pytest.mark.parametrize('total', [0, 5])
def test_nothing_to_do(total):
  stream = io.StringIO()
  progress = Progress(total, 'train', done=total, stream=stream)
  progress.close()
  assert stream.getvalue() == ''
  progress.update(total)
  progress.close()
  assert stream.getvalue().startswith(f'train step {total}/{total}')


def test_a_terminal_shows_one_line_that_fits_and_is_cleared():
  leader, follower = pty.openpty()
  termios.tcsetwinsize(follower, (24, 30))
  with os.fdopen(follower, 'w') as stream:
    progress = Progress(3, 'train', stream=stream)
    for done in (1, 2, 3):
      progress.update(done, images=8, text='a text too long for this terminal')
      time.sleep(0.12)
    progress.close()
    stream.write('end')
    stream.flush()
    shown = ''
    while not shown.endswith('end'):
      shown += os.read(leader, 1000).decode()
  os.close(leader)
  assert '\n' not in shown
  drawn = shown.split('\r\x1b[K')
  assert len(drawn) == 5 and drawn[0] == '' and drawn[-1] == 'end'
  assert all(len(line) == 29 for line in drawn[1:-1])
  assert drawn[1].startswith('train step 1/3 (33%), a text')


def test_durations():
  assert duration(0.4) == '0 s'
  assert duration(59.4) == '59 s'
  assert duration(59.6) == '1:00 min'
  assert duration(185) == '3:05 min'
  assert duration(7800) == '2:10 h'


def test_a_plain_line_comes_only_when_something_moved(monkeypatch):
  monkeypatch.setattr(progress_lib, '_PLAIN_EVERY', 0.0)
  stream = io.StringIO()
  progress = Progress(4, 'square', stream=stream)
  for done in (0, 0, 0, 2, 2, 2):
    progress.update(done)
  progress.close()
  lines = [line.split(',')[0] for line in stream.getvalue().splitlines()]
  assert lines == ['square step 0/4 (0%)', 'square step 2/4 (50%)']


def test_a_stage_counts_steps_and_its_percentage_never_falls(
  monkeypatch, capsys
):
  monkeypatch.setattr(progress_lib, '_PLAIN_EVERY', 0.0)
  stages = Stages(3)
  stages.update('square', 1, 300, 3)  # of three images with 100 queries each
  stages.update('square', 120, 200, 2)  # one fell
  stages.update('square', 120, 200, 2)
  stages.update('square', 130, 300, 2)
  stages.update('square', 250, 200, 2)
  stages.update('fab', 1, 4, 2)
  stages.close()
  stages.close()
  lines = capsys.readouterr().err.splitlines()
  assert [re.sub(r', .* left', '', line) for line in lines] == [
    'square step 1/300 (0%), 3 of 3 stand',
    'square step 120/200 (60%), 2 of 3 stand',
    'square step 130/300 (60%), 2 of 3 stand',
    'square step 200/200 (100%), 2 of 3 stand',
    'fab step 1/4 (25%), 2 of 3 stand',
  ]


def test_work_goes_on_where_nobody_reads():
  """A pipe whose reader ended, as of `| head`; and when Python ends."""
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'w') as stream:
    progress = Progress(2, 'train', stream=stream)
    progress.update(1)
    progress.close()
    put(stream, 'more\n')
    stream.write('flushed when it is closed')


def test_work_goes_on_where_the_disk_is_full(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  log = tmp_path / 'log.txt'
  with log.open('w') as stream:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
      Progress(2, 'train', stream=stream).update(1)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    put(stream, 'there is room again\n')
  assert log.read_text().endswith('there is room again\n')
