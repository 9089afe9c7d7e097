import subprocess
import sys

import pytest

from vmoe_robust.config import UserError
from vmoe_robust.report.lock import locked


def test_a_second_program_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
  code = (
    'import sys, time\n'
    'from vmoe_robust.report.lock import locked\n'
    'with locked(sys.argv[1]):\n'
    '  print("in", flush=True)\n'
    '  time.sleep(600)\n'
  )
  other = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert other.stdout.readline() == 'in\n'
  with pytest.raises(UserError, match=f'--workdir={tmp_path} is in use'):
    with locked(tmp_path):
      raise AssertionError
  other.kill()
  other.communicate()
  with locked(tmp_path):
    pass
  with locked(tmp_path / 'new', 'folder'):
    pass
