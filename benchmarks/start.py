"""How long a program takes to start, and how much of it XLA compiles.

`python benchmarks/start.py --config=configs/digits_moe.py --workdir=W
--config.train.steps=1`: what follows is for `vmoe_robust.main`. Give another
W each time. Twice in a row shows what the cache of compiled programs saves;
`--config.compilation_cache=` is without it.
"""

import collections
import time

start = time.perf_counter()

import jax  # noqa: E402

from vmoe_robust import main  # noqa: E402
from vmoe_robust.config import command_line  # noqa: E402

_COMPILED = '/jax/core/compile/backend_compile_duration'  # or taken from disk
_HIT = '/jax/compilation_cache/cache_hits'


def run(argv: list[str]) -> None:
  """Runs the program and prints what it took."""
  counts, seconds = collections.Counter(), collections.Counter()

  def on_event(name, **_):
    counts[name] += 1

  def on_duration(name, duration, **_):
    counts[name] += 1
    seconds[name] += duration

  jax.monitoring.register_event_listener(on_event)
  jax.monitoring.register_event_duration_secs_listener(on_duration)
  main.main(argv)
  print(
    f'{time.perf_counter() - start:.1f} s in all; {counts[_COMPILED]} programs '
    f'in {seconds[_COMPILED]:.1f} s, {counts[_HIT]} of them from disk'
  )


if __name__ == '__main__':
  command_line.run(run)
