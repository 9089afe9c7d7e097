"""How tests and the processes that they start compile: quickly."""

import os


def xla_flags(devices: int = 1) -> str:
  """The value of XLA_FLAGS for a number of fake devices.

  Most of the tests' time is compiling programs that run once: nothing is
  optimised, kernels are written by the emitters that need half the time, and
  a program's kernels are compiled in one piece, not in 32 for many threads.
  """
  return (
    f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0 '
    '--xla_cpu_parallel_codegen_split_count=1 '
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
  )


def child(devices: int = 1, **more: str) -> dict[str, str]:
  """The environment of a process that a test starts."""
  return os.environ | {'XLA_FLAGS': xla_flags(devices)} | more
