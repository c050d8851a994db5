"""One attempt at a run: takes over shared work, runs main, says how it ended.

  python launchers/attempt.py --workdir=DIR [--shared=DIR]... -- COMMAND...

Every executor starts runs through it, so that what a run's folder says does
not depend on where it ran:
  attempts.jsonl   a row as it starts (pid, host, revision, command) and one
                   as it ends (status, cause)
  log.txt          what the command wrote
  .attempt         locked from before the command starts until it is gone, so
                   that nobody starts a second one, though this process and
                   the launcher be killed
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from absl import app
from absl import flags

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from launchers import locks
from pivotrl_jax import errors
from pivotrl_jax import workdir as workdir_lib

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_SHARED = flags.DEFINE_multi_string(
  "shared", [], "Workdir whose finished stages are taken over; repeatable."
)
_CPUS = flags.DEFINE_list("cpus", [], "Numbers of the cores to run on.")
_PROCESS = flags.DEFINE_integer(
  "process", 0, "Index of this process in a run over several hosts."
)

LOCK = ".attempt"
LOG = "log.txt"
ROWS = "attempts.jsonl"
# The end of the log that is searched for the cause, in bytes.
_TAIL = 20_000


def attempt(
  workdir: pathlib.Path, shared: list[pathlib.Path], command: list[str]
) -> int:
  """Runs `command`; returns its status, 128 + number where a signal ended it.

  Raises:
    InputError: the run is under way already.
    OSError: the folder cannot be written.
  """
  with locks.held(workdir / LOCK, "run") as lock:
    signals = _Signals()
    with workdir_lib.opened(workdir):
      for source in shared:
        workdir_lib.take_over(workdir, source)
    record(
      workdir,
      started=time.time(),
      pid=os.getpid(),
      host=socket.gethostname(),
      revision=workdir_lib.revision(),
      command=command,
    )
    with open(workdir / LOG, "ab") as log:
      log.write(f"$ {' '.join(command)}\n".encode())
      log.flush()
      first = log.tell()
      process = subprocess.Popen(
          command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
          pass_fds=[lock.fileno()],
      )  # fmt: skip
      signals.pass_to(process)
    status = process.wait()
    record(
      workdir,
      ended=time.time(),
      status=status if status >= 0 else 128 - status,
      cause=_cause(workdir, status, first),
    )
  return status if status >= 0 else 128 - status


def record(workdir: pathlib.Path, **row: object) -> None:
  """Appends a row to attempts.jsonl, in one write."""
  with open(workdir / ROWS, "ab") as out:
    out.write(json.dumps(row).encode() + b"\n")


class _Signals:
  """Passes signals on to the run, also those that came before it started."""

  def __init__(self):
    self._process = None
    self._early = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      signal.signal(number, self._on_signal)

  def pass_to(self, process):
    self._process = process
    for number in self._early:
      process.send_signal(number)

  def _on_signal(self, number, _):
    if self._process is None:
      self._early.append(number)
    else:
      self._process.send_signal(number)


def _cause(workdir, status, first):
  """Why the command ended, in one line; "" where it ended well."""
  if status == 0:
    return ""
  if status < 0:
    name = signal.Signals(-status).name
    system = ", as the system does when memory runs out"
    return f"killed by {name}{system * (-status == signal.SIGKILL)}"
  with open(workdir / LOG, "rb") as log:
    log.seek(max(first, log.seek(0, os.SEEK_END) - _TAIL))
    lines = log.read().decode(errors="replace").split("\n")
  lines = [line.strip() for line in lines if line.strip()]
  said = [line for line in lines if line.startswith("error: ")]
  if said:
    return said[-1].removeprefix("error: ")
  if not os.statvfs(workdir).f_bavail:
    return f"status {status}; no space left on {workdir}"
  return (
    f"status {status}; last line: {lines[-1]}"
    if lines
    else (f"status {status} without a word")
  )


def main(argv: list[str]) -> None:
  try:
    if _CPUS.value:
      os.sched_setaffinity(0, {int(number) for number in _CPUS.value})
    status = attempt(
      pathlib.Path(_WORKDIR.value),
      [pathlib.Path(path) for path in _SHARED.value],
      argv[1:],
    )
  except (errors.InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    status = 2
  sys.exit(status)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
