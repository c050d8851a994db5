"""Scalars of a run: metrics.jsonl, and the same to TensorBoard.

metrics.jsonl holds nothing that depends on the clock, so that it is a
function of the command. Seconds go to TensorBoard only.
"""

import json
import os
import pathlib

import tensorboardX

from pivotrl_jax.data import records


class MetricWriter:
  """Appends one row a step; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / "metrics.jsonl"
    self._board = tensorboardX.SummaryWriter(str(workdir / "tb"))
    self._file = None

  def __enter__(self) -> "MetricWriter":
    return self

  def truncate(self, step: int) -> None:
    """Drops rows after `step`, and a torn last one, before going on."""
    kept = []
    if self._path.exists():
      data = self._path.read_bytes()
      for line in data[: data.rfind(b"\n") + 1].splitlines():
        if json.loads(line)["step"] <= step:
          kept.append(json.loads(line))
    records.write_jsonl(self._path, kept)
    self._file = open(self._path, "a", encoding="utf-8")

  def write(
    self, step: int, scalars: dict[str, float], *, seconds: float
  ) -> None:
    """One row of metrics.jsonl; call `truncate` first."""
    row = {"step": step} | dict(sorted(scalars.items()))
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.add_scalar("time/seconds_per_step", seconds, step)

  def __exit__(self, *_) -> None:
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())
      self._file.close()
    self._board.close()
