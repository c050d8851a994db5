"""What is known of a sweep's jobs: shown, logged, and kept in the index."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
from typing import TextIO

from absl import logging
from rich import live as rich_live

from launchers.runs import root as root_lib
from launchers.runs import status
from launchers.runs import table
from pivotrl_jax import errors


class Board:
  """How every job of a sweep stands, as of the last look."""

  def __init__(self, root: pathlib.Path, jobs: Sequence[root_lib.Job]):
    """Looks at all of them.

    Args:
      root: the sweep's folder; runs of its index that are none of `jobs` are
        kept as gone.
      jobs: of the sweep.
    """
    self._root = root
    self._rows = {
      job.name: root_lib.Row(job, False, status.Status("waiting"))
      for job in jobs
    }
    for row in root_lib.read(root):
      if row.job.name not in self._rows and row.job.arm:
        self._rows[row.job.name] = dataclasses.replace(row, gone=True)
    self._running: set[str] = set()
    self._written: list | None = None
    self.update(self._rows.keys(), {})

  def __getitem__(self, name: str) -> status.Status:
    return self._rows[name].status

  @property
  def rows(self) -> list[root_lib.Row]:
    """The rows of the index."""
    return list(self._rows.values())

  def update(self, running: Collection[str], causes: Mapping[str, str]) -> None:
    """Looks at what runs, and what ran at the last look.

    Args:
      running: names of jobs.
      causes: name -> why it failed, where its folder could not be told.
    """
    for name in [n for n in self._rows if n in self._running.union(running)]:
      row = self._rows[name]
      now = status.read(self._root / name, row.job.command, row.job.stages)
      if name in causes and now.state != "running":
        now = dataclasses.replace(now, state="failed", cause=causes[name])
      _log(name, row.status, now)
      self._rows[name] = dataclasses.replace(row, status=now)
    self._running = set(running)
    self._write()

  def _write(self):
    told = [
      (row.job, row.gone, row.status.state, row.status.cause)
      for row in self._rows.values()
    ]
    if told == self._written:
      return
    try:
      root_lib.write(self._root, self._rows.values())
      self._written = told
    except errors.InputError as error:  # The runs go on.
      logging.log_every_n_seconds(logging.WARNING, "%s", 60, error)

  @contextlib.contextmanager
  def live(self, stream: TextIO) -> Iterator[Callable[[], None]]:
    """A live table where `stream` is a terminal; yields what redraws it."""
    if not stream.isatty():
      yield lambda: None
      return
    logging.set_verbosity(logging.WARNING)
    out = table.console(stream)
    with rich_live.Live(console=out, transient=True) as live:
      yield lambda: live.update(
        table.fitting(root_lib.shown(self.rows), out.height - 3)
      )


def _log(name, before, now):
  """A line where the state or the stage is another."""
  if now.state == "waiting" or (before.state, before.stage, before.attempts) == (
    now.state, now.stage, now.attempts
  ):  # fmt: skip
    return
  parts = [now.state]
  if now.state in ("running", "stopped"):
    parts.append(now.stage)
  if now.success is not None:
    parts.append(f"success {now.success:.1%}")
  if now.attempts:
    parts.append(f"{now.seconds:.0f} s")
  logging.info("%s: %s", name, ", ".join(filter(None, [*parts, now.cause])))
