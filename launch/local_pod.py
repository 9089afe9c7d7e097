"""Rehearses a pod on one machine: real processes, a few CPU devices each.

  python launch/local_pod.py -n 4 -- --config=configs/digits_moe.py

starts `python -m vmoe_robust.main --distributed` that many times. Process 0
speaks on the terminal; what each one says is kept in LOGS/process-N.log. Ctrl-C
and SIGTERM go to all, which then save and stop; a second one kills them. When
one fails, the others end by themselves, as on a pod; those that have not done
so after 45 seconds are killed.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

# JAX gives a silent process up after 30 seconds.
_GRACE = 45.0
# Exit codes of those that end because of another:
# `distributed.pod.FOLLOWED`, and JAX's abort().
_FOLLOWED = (75, -signal.SIGABRT)
_NOISE = b'peer ranks'  # in a line that Gloo writes for each communicator


def main() -> int:
  """Runs the pod; returns 0 if every process did."""
  options, arguments = _parse(sys.argv[1:])
  commands = _commands(options, arguments)
  if options.dry_run:
    for environment, command in commands:
      shown = [f'{k}={shlex.quote(v)}' for k, v in environment.items()]
      print(' '.join([*shown, shlex.join(command)]))
    return 0
  options.logs.mkdir(parents=True, exist_ok=True)
  logs = [options.logs / f'process-{i}.log' for i in range(options.processes)]
  print(f'output of each process: {options.logs}/process-N.log', flush=True)
  processes = [
    _start(environment, command, log, speaks=i == 0)
    for i, ((environment, command), log) in enumerate(
      zip(commands, logs, strict=True)
    )
  ]
  ends = _wait([process for process, _ in processes])
  for _, reader in processes:
    if reader:
      reader.join()
  failed = [end for end in ends if end[1]]
  if not failed:
    return 0
  # The first to fail, but before those that only followed another.
  i, code = min(failed, key=lambda end: end[1] in _FOLLOWED)
  print(
    f'error: process {i} {_describe(code)}, and the pod ended; its output is '
    f'in {logs[i]}',
    file=sys.stderr,
  )
  return 1


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  own, arguments = argv, []
  if '--' in argv:
    own, arguments = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage='%(prog)s [options] -- --config=FILE [--workdir=DIR ...]',
  )
  parser.add_argument(
    '-n', '--processes', type=int, default=2, help='how many (default: 2)'
  )
  parser.add_argument(
    '--devices', type=int, default=2, help='of each process (default: 2)'
  )
  parser.add_argument(
    '--logs',
    type=Path,
    default=Path('runs', 'local_pod'),
    help='where the output of each process goes (default: runs/local_pod)',
  )
  parser.add_argument(
    '--dry-run', action='store_true', help='print the commands, run nothing'
  )
  options = parser.parse_args(own)
  for name in ('processes', 'devices'):
    if getattr(options, name) < 1:
      parser.error(f'--{name}={getattr(options, name)} must be 1 or more')
  if not arguments:
    parser.error(
      'say after -- what to run, such as -- --config=configs/NAME.py'
    )
  return options, arguments


def _commands(
  options: argparse.Namespace, arguments: list[str]
) -> list[tuple[dict[str, str], list[str]]]:
  """Of each process, what its environment adds and its command."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  devices = f'--xla_force_host_platform_device_count={options.devices}'
  shared = {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {devices}'.strip(),
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(options.processes),
  }
  main_ = [sys.executable, '-m', 'vmoe_robust.main', '--distributed']
  return [
    (shared | {'JAX_PROCESS_ID': str(i)}, [*main_, *arguments])
    for i in range(options.processes)
  ]


def _start(
  environment: dict[str, str], command: list[str], log: Path, speaks: bool
) -> tuple[subprocess.Popen, threading.Thread | None]:
  """Starts a process, and if it speaks, a thread that shows what it says."""
  with log.open('wb') as file:
    process = subprocess.Popen(
      command,
      env=os.environ | environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE if speaks else file,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # the terminal's Ctrl-C comes by way of us
    )
  if not speaks:
    return process, None
  reader = threading.Thread(target=_show, args=(process.stdout, log))
  reader.start()
  return process, reader


def _show(stream, log: Path):
  with log.open('wb') as file:
    for line in stream:
      file.write(line)
      file.flush()
      if _NOISE not in line:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _wait(processes: list[subprocess.Popen]) -> list[tuple[int, int]]:
  """Waits for all; (number, exit code) in the order in which they ended."""
  asked = []

  def forward(number, _):
    asked.append(number)
    for process in processes:
      process.send_signal(number if len(asked) == 1 else signal.SIGKILL)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, forward)
  ends, deadline = {}, float('inf')
  while len(ends) < len(processes):
    for i, process in enumerate(processes):
      if i not in ends and process.poll() is not None:
        ends[i] = process.returncode
        if process.returncode:
          deadline = min(deadline, time.monotonic() + _GRACE)
      elif time.monotonic() > deadline:
        process.kill()
    time.sleep(0.1)
  return list(ends.items())


def _describe(code: int) -> str:
  if code > 0:
    return f'exited with code {code}'
  return f'was ended by {signal.Signals(-code).name}'


if __name__ == '__main__':
  sys.exit(main())
