import io
import os
import pty
import re
import termios
import time

import pytest

from vmoe_robust.report.progress import Progress, duration


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
