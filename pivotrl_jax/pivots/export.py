"""The `export` stage: pivots as NeMo Gym rows, for trainers other than ours."""

import pathlib
from typing import Any

from absl import logging

from pivotrl_jax.data import records
from pivotrl_jax.data.importers import nemo_gym


def run(config: Any, workdir: pathlib.Path) -> None:
  """pivots.jsonl -> pivot_rows.jsonl; what Gym would refuse is skipped.

  Rows that were imported as pivot rows leave as they came.
  """
  del config
  wanted = {
    p.candidate_id for p in records.read_pivots(workdir / "pivots.jsonl")
  }
  trajectories = {
    t.id: t for t in records.read_trajectories(workdir / "trajectories.jsonl")
  }
  skipped: list[dict[str, Any]] = []

  def rows():
    for candidate in records.read_candidates(workdir / "candidates.jsonl"):
      if candidate.id not in wanted:
        continue
      row = nemo_gym.pivot_row(trajectories[candidate.trajectory_id], candidate)
      reason = nemo_gym.validate_row(row)
      if reason is None:
        yield row
      else:
        skipped.append({"id": candidate.id, "reason": reason})

  count = records.write_jsonl(workdir / "pivot_rows.jsonl", rows())
  records.replace_skipped(workdir, "export", skipped)
  logging.info("export: %d rows, %d refused", count, len(skipped))
