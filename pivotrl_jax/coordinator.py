"""JAX's coordination service, as a process of its own: PORT and COUNT.

It ends when its standard input does, a little later: see `hosts`.
"""

import os
import socket
import sys
import time

from jaxlib import _jax

READY = "ready"
_LINGER = 2  # Seconds for the others of a run to hear that it has ended.


def main(port: int, count: int) -> None:
  """Serves until standard input ends; says `READY`, or what is in the way."""
  service, said = None, READY
  try:
    # Where another listens there, the service may crash instead of raising.
    socket.create_server(("", port)).close()
    service = _jax.get_distributed_runtime_service(f"[::]:{port}", count)
  except (OSError, _jax.JaxRuntimeError) as error:
    said = " ".join(str(error).split())
  try:
    os.write(1, f"{said}\n".encode())
  except BrokenPipeError:  # Whoever started it has ended meanwhile.
    return
  if service is None:
    return
  sys.stdin.read()
  time.sleep(_LINGER)
  del service


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
