"""Scalars of a run: metrics.jsonl, and the same to TensorBoard.

metrics.jsonl holds nothing that depends on the clock, so that it is a
function of the command. Seconds go to TensorBoard only.
"""

import json
import os
import pathlib

from absl import logging
import tensorboardX

from pivotrl_jax.data import records


class MetricWriter:
  """Appends one row a step; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / "metrics.jsonl"
    self._folder = workdir / "tb"
    self._board = None
    self._file = None

  def __enter__(self) -> "MetricWriter":
    return self

  def start(self, step: int) -> None:
    """Goes on after `step`: drops later rows, and a torn last one.

    Raises:
      InputError: a line before the last is no row.
    """
    kept = []
    if self._path.exists():
      data = self._path.read_bytes()
      for number, line in enumerate(
        data[: data.rfind(b"\n") + 1].splitlines(), 1
      ):
        place = f"{self._path}:{number}"
        row = records.decode(line, place)
        if records.field(row, "step", int, place) <= step:
          kept.append(row)
    steps = [row["step"] for row in kept]
    if steps and steps != list(range(steps[0], step + 1)):
      logging.warning(
        "%s: rows of steps before %d are missing", self._path, step + 1
      )
    records.write_jsonl(self._path, kept)
    self._file = open(self._path, "a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(self._folder), purge_step=step + 1
    )

  def write(
    self, step: int, scalars: dict[str, float], *, seconds: float
  ) -> None:
    """One row of metrics.jsonl; call `start` first."""
    row = {"step": step} | dict(sorted(scalars.items()))
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.add_scalar("time/seconds_per_step", seconds, step)

  def sync(self) -> None:
    """The rows so far are on the disk when this returns."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def __exit__(self, *_) -> None:
    if self._file is not None:
      self.sync()
      self._file.close()
      self._board.close()
