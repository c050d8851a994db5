"""SIGTERM and SIGINT: a process ends where nothing is lost.

Everything a run writes outlives a `kill -9`, so a signal ends it at once, but
for work that is `held`: there the first signal waits until `check` is called,
and the second ends at once. A thread listens, so that a signal is heard
whatever the main thread is at: compiling, sampling, saving.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
  """Held work ends because of a signal.

  Attributes:
    status: the process's exit status, 128 and the signal's number.
  """

  def __init__(self, number: int):
    super().__init__(name(number))
    self.status = 128 + number


class _State:
  """What the listening thread and the main thread share."""

  def __init__(self):
    self.lock = threading.Lock()
    self.held = False
    self.asked: int | None = None
    self.tell: Callable[[int, str], None] = lambda status, line: None


_STATE = _State()


def install() -> None:
  """Listens to SIGTERM and SIGINT from now on; for the main thread."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in _SIGNALS:
    # The bytes in the pipe tell; Python's own handlers must only not raise.
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_listen, args=(reader,), daemon=True).start()


def before_end(tell: Callable[[int, str], None]) -> None:
  """`tell(status, line)` is called when a signal ends this process."""
  _STATE.tell = tell


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Work within which the first signal waits for `check`.

  Raises:
    Stopped: at its end, if a signal came after the last `check`.
  """
  with _STATE.lock:
    _STATE.held = True
  try:
    yield
  finally:
    with _STATE.lock:
      _STATE.held = False
  check()


def check() -> None:
  """Raises Stopped if a signal waits."""
  if asked() is not None:
    raise Stopped(asked())


def asked() -> int | None:
  """The number of the signal that waits, if one does."""
  return _STATE.asked


def name(number: int) -> str:
  """`SIGTERM` of 15."""
  return signal.Signals(number).name


def _listen(reader):
  while True:
    for number in os.read(reader, 64):
      if number not in _SIGNALS:
        continue
      with _STATE.lock:
        if not _STATE.held:
          _end(number, "what is complete stays, the same command goes on")
        if _STATE.asked is not None:
          _end(number, "again; what is complete stays")
        _STATE.asked = number
      _say(f"{name(number)}: ending after this step; again to end at once")


def _end(number, line):
  _STATE.tell(128 + number, f"{name(number)}: {line}")
  _say(f"error: {name(number)}: {line}")
  os._exit(128 + number)


def _say(line):
  # Not through a logger, whose lock the main thread may hold.
  os.write(2, f"{line}\n".encode())
