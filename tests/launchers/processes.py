"""Processes by what is in their command line, to kill."""

from collections.abc import Iterable
import os
import pathlib
import signal


def naming(root: pathlib.Path) -> dict[int, list[bytes]]:
  """Pid -> command line of what has `root` in it, but for this process."""
  found = {}
  for place in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (place / "cmdline").read_bytes().split(b"\0")
    except OSError:
      continue
    if (
      str(root).encode() in b" ".join(words) and int(place.name) != os.getpid()
    ):
      found[int(place.name)] = words
  return found


def children(pid: int) -> list[int]:
  """The processes that a process has started and that run."""
  found = []
  for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
    found += map(int, (task / "children").read_text().split())
  return found


def kill(pids: Iterable[int]) -> None:
  """kill -9."""
  for pid in pids:
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
