"""Starts SGLang servers beside a trainer, watches them and stops them.

  python launchers/sglang_sidecar.py --python=ENV/bin/python --model=DIR
  python launchers/sglang_sidecar.py ... -- python -m pivotrl_jax.main \
    --config=configs/swe.py --config.engine.name=sglang --workdir=runs/swe

With a command after `--` it runs that once the servers are ready, stops them
when it ends and hands on its status; otherwise it serves until it is
interrupted. `--flags="--tp-size 2"` goes to SGLang. Flags are explained in
third_party/sglang/README.md.
"""

from collections.abc import Sequence
import dataclasses
import logging as py_logging
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

from absl import app
from absl import flags
from absl import logging
import httpx2

ROOT = pathlib.Path(__file__).parent.parent

_PYTHON = flags.DEFINE_string("python", None, "Of SGLang's environment.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory.")
_DEVICE = flags.DEFINE_enum("device", "gpu", ["gpu", "cpu"], "Start script.")
_PORT = flags.DEFINE_integer("port", 30000, "Of the first server.")
_COUNT = flags.DEFINE_integer(
  "count", 1, "Servers, on ports one after another."
)
_FLAGS = flags.DEFINE_string("flags", "", "Further flags of SGLang.")
_LOG = flags.DEFINE_string("log", "sglang_logs", "Folder of the servers' logs.")
_RESTARTS = flags.DEFINE_integer("restarts", 5, "Most restarts of a server.")
_START = flags.DEFINE_float("start_timeout", 600.0, "Seconds to become ready.")
_HANG = flags.DEFINE_float(
  "hang_timeout", 120.0, "Seconds without health after which it is restarted."
)

_POLL = 0.5  # Seconds between two looks at a server.
_HEALTH = 10.0  # And at its health: SGLang generates a token for each.
_GRACE = 20.0  # Seconds from SIGTERM to SIGKILL.


class Gone(Exception):
  """A server did not come up, or not again: one line, with its log's end."""


@dataclasses.dataclass
class Sidecar:
  """One server process and its log.

  Attributes:
    command: starts it, in a process group of its own.
    address: where it will answer `/ready` and `/health`.
    log: what it writes, every start of it.
    restarts: how many are left.
    start_timeout: seconds from start to ready.
    hang_timeout: seconds without health until it is restarted.
    key: bearer token of its API, "" without.
  """

  command: Sequence[str]
  address: str
  log: pathlib.Path
  restarts: int = 5
  start_timeout: float = 600.0
  hang_timeout: float = 120.0
  key: str = ""
  process: subprocess.Popen | None = None
  healthy: float = 0.0  # When it last was, by the monotonic clock.
  looked: float = 0.0  # When its health was last asked for.
  # One for all looks: making one takes longer than a look.
  http: httpx2.Client = dataclasses.field(default_factory=httpx2.Client)

  def start(self) -> None:
    """Starts it; does not wait."""
    self.log.parent.mkdir(parents=True, exist_ok=True)
    with open(self.log, "ab") as out:
      self.process = subprocess.Popen(
        self.command, stdout=out, stderr=out, start_new_session=True
      )
    self.healthy = time.monotonic()

  def wait(self, stopping: threading.Event) -> None:
    """Until it is ready, or `stopping` is set.

    Raises:
      Gone: it ended, or is not ready within `start_timeout`.
    """
    end = time.monotonic() + self.start_timeout
    while not self._answers("/ready"):
      if stopping.is_set():
        return
      if self.process.poll() is not None or time.monotonic() > end:
        ended = self.process.poll()
        self.stop()
        how = "not ready in time" if ended is None else f"ended with {ended}"
        raise Gone(f"{self.address}: {how}; {self._last_line()}")
      time.sleep(_POLL)
    self.healthy = time.monotonic()

  def watch(self, stopping: threading.Event) -> None:
    """One look; restarts a server that has ended or hangs.

    Raises:
      Gone: no restart is left, or the restart failed.
    """
    ended = self.process.poll()
    if ended is None:
      if time.monotonic() - self.looked < min(_HEALTH, self.hang_timeout / 4):
        return
      self.looked = time.monotonic()
      if self._answers("/health"):
        self.healthy = time.monotonic()
      if time.monotonic() - self.healthy < self.hang_timeout:
        return
    how = "hangs" if ended is None else f"ended with {ended}"
    self.stop()
    if not self.restarts:
      raise Gone(f"{self.address}: {how}, no restart left; {self._last_line()}")
    self.restarts -= 1
    logging.warning(
      "sidecar: %s %s; restarted, %d left", self.address, how, self.restarts
    )
    self.start()
    self.wait(stopping)

  def stop(self) -> None:
    """Ends it and all it started; SIGKILL where SIGTERM does not do."""
    if self.process is None:
      return
    for number, grace in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
      try:
        os.killpg(self.process.pid, number)
        os.killpg(self.process.pid, signal.SIGCONT)
      except ProcessLookupError:
        break
      try:
        self.process.wait(grace)
      except subprocess.TimeoutExpired:
        continue
    self.process.wait()

  def _answers(self, path):
    headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
    try:
      # A server that hangs must not be waited for long.
      found = self.http.get(
        self.address + path,
        headers=headers,
        timeout=min(20.0, self.hang_timeout),
      )
    except httpx2.HTTPError:
      return False
    return found.status_code == 200

  def _last_line(self):
    lines = self.log.read_text(errors="replace").split("\n")
    said = [line for line in lines if line.strip()] or ["nothing"]
    return f"its log {self.log} ends with {said[-1].strip():.200}"


def serve(
  sidecars: Sequence[Sidecar],
  command: Sequence[str],
  stopping: threading.Event,
) -> int:
  """Runs servers, and `command` beside them if there is one.

  Returns:
    The command's status; 0 where there is none.

  Raises:
    Gone: the last server is, for good, or one does not come up at first; the
      command was told to end (SIGTERM).
  """
  child, left = None, list(sidecars)
  try:
    for sidecar in sidecars:
      sidecar.start()
    for sidecar in sidecars:
      sidecar.wait(stopping)
    logging.info("sidecar: ready: %s", ",".join(s.address for s in sidecars))
    if command and not stopping.is_set():
      child = subprocess.Popen(command)
    while not stopping.wait(_POLL):
      if child is not None and child.poll() is not None:
        return child.returncode
      for sidecar in list(left):
        if not _watched(sidecar, stopping, alone=len(left) == 1):
          left.remove(sidecar)
    return 0
  finally:
    if child is not None and child.poll() is None:
      child.terminate()
      child.wait()
    for sidecar in sidecars:
      sidecar.stop()


def _watched(sidecar, stopping, *, alone):
  """One look; False where it is gone and others are left."""
  try:
    sidecar.watch(stopping)
  except Gone as error:
    if alone:
      raise
    logging.error("sidecar: goes on without a server: %s", error)
    return False
  return True


def main(argv):
  logging.set_verbosity(logging.INFO)
  py_logging.getLogger("httpx2").setLevel(py_logging.WARNING)
  if not _PYTHON.value or not _MODEL.value:
    raise app.UsageError("--python and --model: not given; expected both")
  script = ROOT / "third_party" / "sglang" / f"start_{_DEVICE.value}.sh"
  sidecars = [
    Sidecar(
      command=[
        str(script), _PYTHON.value, _MODEL.value, str(port),
        *shlex.split(_FLAGS.value),
      ],
      address=f"http://127.0.0.1:{port}",
      log=pathlib.Path(_LOG.value) / f"{port}.log",
      restarts=_RESTARTS.value,
      start_timeout=_START.value,
      hang_timeout=_HANG.value,
      key=os.environ.get("PIVOTRL_SGLANG_KEY", ""),
    )
    for port in range(_PORT.value, _PORT.value + _COUNT.value)
  ]  # fmt: skip
  stopping = threading.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stopping.set())
  try:
    sys.exit(serve(sidecars, argv[1:], stopping))
  except Gone as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
