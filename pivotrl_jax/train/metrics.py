"""What steps leave behind: metrics.jsonl, rollouts.jsonl, and TensorBoard.

The files hold nothing that depends on the clock, so that they are a function
of the command. Seconds go to TensorBoard only.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

from absl import logging
import tensorboardX

from pivotrl_jax import hosts
from pivotrl_jax.data import records


class StepRows:
  """A file of rows with a `step`, that goes on after a checkpoint."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file = None

  def start(self, step: int) -> list[int]:
    """Goes on after `step`: drops later rows, and a torn last one.

    Returns:
      The steps of the rows that stay.

    Raises:
      InputError: a line before the last is no row.
    """
    if not self._path.exists():
      return []
    kept, steps = [], []
    data = self._path.read_bytes()
    for number, line in enumerate(
      data[: data.rfind(b"\n") + 1].splitlines(), 1
    ):
      place = f"{self._path}:{number}"
      row = records.decode(line, place)
      if records.field(row, "step", int, place) <= step:
        kept.append(row)
        steps.append(row["step"])
    records.write_jsonl(self._path, kept)
    return steps

  def append(self, rows: Sequence[dict[str, Any]]) -> None:
    """Adds rows; the first call makes the file."""
    if self._file is None:
      self._file = open(self._path, "a", encoding="utf-8")
    self._file.writelines(records.encode(row) + "\n" for row in rows)
    self._file.flush()

  def sync(self) -> None:
    """The rows so far are on the disk when this returns."""
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """The same; no more rows come."""
    self.sync()
    if self._file is not None:
      self._file.close()


def writer(workdir: pathlib.Path) -> "MetricWriter | NoWriter":
  """A MetricWriter, which of several processes the first one has."""
  return MetricWriter(workdir) if hosts.is_first() else NoWriter()


class NoWriter:
  """Takes what a MetricWriter does, and leaves nothing behind."""

  def __enter__(self) -> "NoWriter":
    return self

  def start(self, step: int) -> None:
    """See `MetricWriter`."""

  def write(self, step: int, *_, seconds: float) -> None:
    """See `MetricWriter`."""

  def sync(self) -> None:
    """See `MetricWriter`."""

  def __exit__(self, *_) -> None:
    pass


class MetricWriter:
  """Appends a row of metrics a step, and its rollouts; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / "metrics.jsonl"
    self._folder = workdir / "tb"
    self._metrics = StepRows(self._path)
    self._rollouts = StepRows(workdir / "rollouts.jsonl")
    self._board = None

  def __enter__(self) -> "MetricWriter":
    return self

  def start(self, step: int) -> None:
    """Goes on after `step`; see `StepRows.start`."""
    steps = self._metrics.start(step)
    if steps and steps != list(range(steps[0], step + 1)):
      logging.warning(
        "%s: rows of steps before %d are missing", self._path, step + 1
      )
    self._metrics.append([])
    self._rollouts.start(step)
    self._board = tensorboardX.SummaryWriter(
      str(self._folder), purge_step=step + 1
    )

  def write(
    self,
    step: int,
    scalars: dict[str, float],
    rollouts: Sequence[dict[str, Any]] = (),
    *,
    seconds: float,
  ) -> None:
    """A step's row of metrics.jsonl, its rows of rollouts.jsonl; call `start`
    first.
    """
    if rollouts:
      self._rollouts.append(rollouts)
    self._metrics.append([{"step": step} | dict(sorted(scalars.items()))])
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.add_scalar("time/seconds_per_step", seconds, step)

  def sync(self) -> None:
    """The rows so far are on the disk when this returns."""
    self._metrics.sync()
    self._rollouts.sync()

  def __exit__(self, *_) -> None:
    self._metrics.close()
    self._rollouts.close()
    if self._board is not None:
      self._board.close()
