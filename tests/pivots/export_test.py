"""Pivots leave as NeMo Gym rows, and come back as they were."""

import json

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import nemo_gym
from pivotrl_jax.envs import worlds
from pivotrl_jax.pivots import candidates as candidates_lib
from pivotrl_jax.pivots import export


def _write(workdir, trajectories, keep):
  candidates = [c for t in trajectories for c in candidates_lib.candidates(t)]
  for name, rows in (
    ("trajectories", map(records.trajectory_to_json, trajectories)),
    ("candidates", map(records.candidate_to_json, candidates)),
    (
      "pivots",
      (
        records.pivot_to_json(types.Pivot(c.id, 0.5, 0.25, "difficult"))
        for c in candidates
        if keep(c)
      ),
    ),
  ):
    records.write_jsonl(workdir / f"{name}.jsonl", rows)
  return candidates


def test_rows_are_valid_and_hold_the_pivot(tmp_path):
  trajectory = worlds.demonstrate("swe", 0, "train", 0)
  candidates = _write(tmp_path, [trajectory], lambda c: c.turn != 1)
  export.run(None, tmp_path)
  rows = [
    json.loads(x)
    for x in (tmp_path / "pivot_rows.jsonl").read_text().splitlines()
  ]
  kept = [c for c in candidates if c.turn != 1]
  assert [row["uuid"] for row in rows] == [c.id for c in kept]
  for row, candidate in zip(rows, kept, strict=True):
    assert nemo_gym.validate_row(row) is None
    assert (
      types.action_from_json(row["expected_action"]).calls[0].arguments
      == candidate.demonstration.calls[0].arguments
    )


def test_terminus_rows_carry_answer_and_harness(tmp_path):
  trajectory = types.Trajectory(
    "t", "terminal", "s", "t", None, None, (),
    (types.Message("user", "go"), types.Message("assistant", '{"a": 1}')),
    {"metadata": {"harness": "terminus_2"}},
  )  # fmt: skip
  _write(tmp_path, [trajectory], lambda c: True)
  export.run(None, tmp_path)
  row = json.loads((tmp_path / "pivot_rows.jsonl").read_text())
  assert row["expected_answer"] == '{"a": 1}'
  assert row["metadata"] == {"harness": "terminus_2"}
  assert nemo_gym.validate_row(row) is None


def test_what_gym_refuses_is_skipped_with_its_reason(tmp_path):
  trajectory = worlds.demonstrate("swe", 1, "train", 0)
  trajectory = types.Trajectory(
    **{**vars(trajectory), "tools": trajectory.tools[:1]}
  )
  _write(tmp_path, [trajectory], lambda c: True)
  export.run(None, tmp_path)
  skipped = [
    json.loads(x) for x in (tmp_path / "skipped.jsonl").read_text().splitlines()
  ]
  assert skipped and all(row["stage"] == "export" for row in skipped)
  assert "expected a tool" in skipped[0]["reason"]
