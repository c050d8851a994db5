"""Locks that die with the process, and with the processes it passed them to."""

import contextlib
import fcntl
import pathlib
import time

from pivotrl_jax import errors

# A look at a lock takes it for an instant: whoever wants it tries this long.
_PATIENCE = 2.0


@contextlib.contextmanager
def held(path: pathlib.Path, user: str):
  """Holds `path` as a lock; yields its file, whose descriptor can be passed on.

  Args:
    path: a file, made if it is not there.
    user: what holds it, for the error.

  Raises:
    InputError: another process holds it.
    OSError: it cannot be made.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a") as file:
    end = time.monotonic() + _PATIENCE
    while not _taken(file, fcntl.LOCK_EX):
      if time.monotonic() > end:
        raise errors.InputError(
          f"{path.parent}: in use by another {user}; expected a free one"
        )
      time.sleep(0.05)
    yield file


def is_held(path: pathlib.Path) -> bool:
  """Whether a process holds `path`."""
  try:
    with open(path) as file:
      return not _taken(file, fcntl.LOCK_SH)
  except FileNotFoundError:
    return False


def _taken(file, kind):
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
