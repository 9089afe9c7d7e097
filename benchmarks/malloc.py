"""Training steps on the CPU with the C library's malloc, against another's.

  python benchmarks/malloc.py --library=PATH [--model=cifar10_moe] [--steps=20]
    [--rounds=5]

XLA takes the memory for a program's intermediate arrays from malloc at each
call. glibc gives large blocks back to the system, which fills new pages with
zeros at the next call; other libraries, loaded by LD_PRELOAD, keep them.

Equal processes differ, so each round starts two new ones, one after the other,
and the next round in the other order. A line has the medians over the rounds of
the CPU-seconds of a step (user and system), its page faults, and the most
memory of the process; then the ratio.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys


def work(model: str, steps: int) -> None:
  """Prints what steps take of this process."""
  from objectives import Run, configured

  run = Run(configured(model, 'natural', 'evaluation'))
  run()
  before = resource.getrusage(resource.RUSAGE_SELF)
  for _ in range(steps):
    run()
  after = resource.getrusage(resource.RUSAGE_SELF)
  user, system, faults = (
    (getattr(after, name) - getattr(before, name)) / steps
    for name in ('ru_utime', 'ru_stime', 'ru_minflt')
  )
  print(user, system, faults, after.ru_maxrss)


def measured(library: str, model: str, steps: int) -> tuple[float, ...]:
  """What a new process with a library prints."""
  command = [sys.executable, __file__, f'--model={model}', f'--steps={steps}']
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'LD_PRELOAD': library}
  done = subprocess.run(
    [*command, '--work'],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env=environment,
  )
  return tuple(float(x) for x in done.stdout.split())


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--library', default='')
  parser.add_argument('--model', default='cifar10_moe')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.work:
    work(given.model, given.steps)
    return
  if not pathlib.Path(given.library).is_file():
    parser.error(f'--library={given.library!r} is not a file')
  found = {'': [], given.library: []}
  for round_ in range(given.rounds):
    for library in list(found) if round_ % 2 else reversed(list(found)):
      found[library].append(measured(library, given.model, given.steps))
  print('user s  system s  page faults   most MB  malloc')
  for library, rows in found.items():
    medians = map(statistics.median, zip(*rows, strict=True))
    user, system, faults, most = medians
    print(
      f'{user:6.3f}  {system:8.3f}  {faults:11,.0f}  {most / 1024:8,.0f}  '
      f'{pathlib.Path(library).name or "of the C library"}'
    )
  own, other = ([row[0] + row[1] for row in rows] for rows in found.values())
  ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
  print(f"CPU-seconds of a step, of the C library's: {ratio:.2f}")


if __name__ == '__main__':
  main()
