"""JAX's coordination service, as a process of its own: PORT and COUNT.

It ends when its standard input does, a little later: see `hosts`.
"""

import socket
import sys
import time

from jaxlib import _jax

_WAIT = 30  # Seconds for the port of a run that has just ended.
_LINGER = 2  # Seconds for the others of a run to hear that it has ended.


def main(port: int, count: int) -> None:
  """Serves until standard input ends; says a word when it is ready."""
  if not _free(port):
    return
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", count)
  print("ready", flush=True)
  sys.stdin.read()
  time.sleep(_LINGER)
  del service


def _free(port):
  """Waits for a port. The service itself would share it with another run's."""
  for _ in range(_WAIT):
    try:
      socket.create_server(("", port)).close()
      return True
    except OSError:
      time.sleep(1)
  return False


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
