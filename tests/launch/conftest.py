"""PATH with nothing but what a test puts there, so that no cloud is reached."""

import dataclasses
import json
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# What the scripts use of any machine.
_COMMON = ('bash', 'cat', 'chmod', 'dirname', 'gzip', 'mkdir', 'rm')
_COMMON += ('setsid', 'sh', 'sleep', 'tail', 'tar', 'touch', 'wc')

# What a worker finds on its PATH, and what uv installs: a run that saves, then
# does what the test wrote into $FAKE_CLOUD/run.
_UV = """#!/bin/sh
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  cat > .venv/bin/python <<'END'
#!/bin/sh
echo "trouble of $WORKER" >&2
echo "$WORKER: $*" >> "$FAKE_CLOUD/runs"
[ "$WORKER" = n0-w0 ] || exit 0
. "$FAKE_CLOUD/run"
END
  chmod +x .venv/bin/python
fi
"""
_TOOLS = {
  'hostname': '#!/bin/sh\necho "$WORKER"\n',
  'mountpoint': '#!/bin/sh\n[ -e "$HOME/mounted" ]\n',
  'sudo': '#!/bin/sh\n[ "$1" != mount ] || echo "$*" > "$HOME/mounted"\n',
  'curl': '#!/bin/sh\necho "mkdir -p ~/.local/bin; cp_uv() { cat'
  ' $FAKE_CLOUD/uv; }; cp_uv > ~/.local/bin/uv; chmod +x ~/.local/bin/uv"\n',
}


@pytest.fixture
def tool(tmp_path, monkeypatch):
  """Puts a program of a name and a source on PATH."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in _COMMON:
    (folder / name).symlink_to(shutil.which(name))
  monkeypatch.setenv('PATH', str(folder))
  monkeypatch.syspath_prepend(ROOT / 'launch')

  def put(name, source):
    (folder / name).write_text(source)
    (folder / name).chmod(0o755)

  return put


@pytest.fixture
def python_tool(tool):
  """The same with the source in Python."""
  return lambda name, source: tool(name, f'#!{sys.executable} -IS\n{source}')


@dataclasses.dataclass
class Cloud:
  """A gcloud whose cloud is a folder, and `launch/tpu.py` to use it."""

  folder: pathlib.Path
  share: pathlib.Path
  bin: pathlib.Path

  def tpu(self, *arguments):
    """What `launch/tpu.py` does, in this process."""
    import tpu

    tpu.main([str(argument) for argument in arguments])

  def refused(self, *arguments):
    """The one line in which it refuses."""
    with pytest.raises(SystemExit) as stop:
      self.tpu(*arguments)
    message = str(stop.value)
    assert message.startswith('error: ') and '\n' not in message
    return message

  def run_is(self, script):
    """What the first process does once it has started, as a shell script."""
    (self.folder / 'run').write_text(script)

  def calls(self):
    """What gcloud was asked."""
    path = self.folder / 'calls.jsonl'
    lines = path.read_text().splitlines() if path.exists() else ()
    return [json.loads(line) for line in lines]

  def verbs(self):
    """Of the calls, without looking at the pod."""
    return [c[4] for c in self.calls() if c[4] != 'describe']

  def starts(self):
    """A line for each process that was started."""
    return sorted((self.folder / 'runs').read_text().splitlines())

  def run_flags(self, name='a run'):
    """Of a run with a work directory of this name."""
    return [
      '--share=10.0.0.2:/vol1',
      '--config=configs/digits_moe.py',
      f'--workdir={self.share}/{name}',
    ]


@pytest.fixture
def cloud(tmp_path, tool, python_tool, monkeypatch):
  """A cloud without a pod."""
  found = Cloud(*(tmp_path / name for name in ('cloud', 'share', 'bin')))
  found.folder.mkdir()
  found.share.mkdir()
  for name, source in _TOOLS.items():
    tool(name, source)
  gcloud = ROOT / 'tests' / 'launch' / 'fake_gcloud.py'
  python_tool('gcloud', gcloud.read_text())
  (found.folder / 'uv').write_text(_UV)
  monkeypatch.setenv('FAKE_CLOUD', str(found.folder))
  import tpu
  import tpu_pod
  import tpu_run

  monkeypatch.setattr(tpu_run, 'POLL', 0)
  for module in (tpu, tpu_pod):
    monkeypatch.setattr(module, 'MOUNT', str(found.share))
  return found
