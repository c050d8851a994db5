"""JAX's coordination service, as a process of its own: PORT and COUNT.

It ends when its standard input does, a little later: see `hosts`.
"""

import sys
import time

from jaxlib import _jax

_LINGER = 2  # Seconds for the others of a run to hear that it has ended.


def main(port: int, count: int) -> None:
  """Serves until standard input ends; says a word when it is ready."""
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", count)
  print("ready", flush=True)
  sys.stdin.read()
  time.sleep(_LINGER)
  del service


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
