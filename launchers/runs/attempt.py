"""One attempt at a run: takes over shared work, runs main, says how it ended.

  python launchers/runs/attempt.py --workdir=DIR [--shared=DIR]... -- COMMAND...

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

from absl import flags

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from launchers.runs import locks
from pivotrl_jax import errors
from pivotrl_jax import workdir as workdir_lib

# Its own: others that import it, and main's, have flags of these names.
_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", flag_values=_FLAGS, required=True
)
_SHARED = flags.DEFINE_multi_string(
  "shared",
  [],
  "Workdir whose finished stages are taken over; repeatable.",
  flag_values=_FLAGS,
)
_CPUS = flags.DEFINE_list(
  "cpus", [], "Numbers of the cores to run on.", flag_values=_FLAGS
)
_PROCESS = flags.DEFINE_integer(
  "process",
  0,
  "Index of this process in a run over several hosts.",
  flag_values=_FLAGS,
)
_EXIT_ZERO = flags.DEFINE_bool(
  "exit_zero",
  False,
  "End in status 0; the folder says how the run ended.",
  flag_values=_FLAGS,
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
    status, cause = _run(workdir / LOG, command, signals, lock.fileno())
    record(workdir, ended=time.time(), status=status, cause=cause)
  return status


def accompany(workdir: pathlib.Path, command: list[str], process: int) -> int:
  """As `attempt`, for a further process of a run over several hosts.

  The first one takes over shared work and keeps the records.
  """
  with locks.held(workdir / f"{LOCK}-{process}", "run") as lock:
    log = workdir / f"log-{process}.txt"
    return _run(log, command, _Signals(), lock.fileno())[0]


def _run(log, command, signals, lock):
  """Status and cause of `command`, which inherits the lock."""
  with open(log, "ab") as out:
    out.write(f"$ {' '.join(command)}\n".encode())
    out.flush()
    first = out.tell()
    process = subprocess.Popen(
        command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        pass_fds=[lock],
    )  # fmt: skip
  signals.pass_to(process)
  status = process.wait()
  return status if status >= 0 else 128 - status, _cause(log, status, first)


def record(workdir: pathlib.Path, **row: object) -> None:
  """Appends a row to attempts.jsonl; one that was torn stays a line apart."""
  with open(workdir / ROWS, "ab+") as out:
    torn = False
    if out.tell():
      out.seek(-1, os.SEEK_END)
      torn = out.read() != b"\n"
    out.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


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


def _cause(log, status, first):
  """Why the command ended, in one line; "" where it ended well."""
  if status == 0:
    return ""
  if status < 0:
    name = signal.Signals(-status).name
    system = ", as the system does when memory runs out"
    return f"killed by {name}{system * (-status == signal.SIGKILL)}"
  with open(log, "rb") as file:
    file.seek(max(first, file.seek(0, os.SEEK_END) - _TAIL))
    lines = file.read().decode(errors="replace").split("\n")
  lines = [line.strip() for line in lines if line.strip()]
  said = [line for line in lines if line.startswith("error: ")]
  if said:
    return said[-1].removeprefix("error: ")
  if not os.statvfs(log).f_bavail:
    return f"status {status}; no space left for {log}"
  return (
    f"status {status}; last line: {lines[-1]}"
    if lines
    else (f"status {status} without a word")
  )


def main(argv: list[str]) -> None:
  try:
    if _CPUS.value:
      os.sched_setaffinity(0, {int(number) for number in _CPUS.value})
    workdir, command = pathlib.Path(_WORKDIR.value), argv[1:]
    if _PROCESS.value:
      status = accompany(workdir, command, _PROCESS.value)
    else:
      shared = [pathlib.Path(path) for path in _SHARED.value]
      status = attempt(workdir, shared, command)
  except (errors.InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    status = 2
  sys.exit(0 if _EXIT_ZERO.value else status)


if __name__ == "__main__":
  try:
    main(_FLAGS(sys.argv))
  except flags.Error as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
