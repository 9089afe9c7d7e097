"""Text for people."""

import jax


def say(text: str) -> None:
  """Prints, on the first process alone."""
  if jax.process_index() == 0:
    print(text, flush=True)
