"""Kept checkpoints played again."""

import pathlib
import subprocess
import sys

import pytest

from launchers import curve
from launchers import tables
from pivotrl_jax import errors
from pivotrl_jax.data import records

ROOT = pathlib.Path(__file__).parent.parent.parent
_VALUES = {
  "data.trajectories": 2, "profile.group_size": 2, "select": "random",
  "rollout.pivots_per_step": 2, "rollout.group_size": 2, "train.steps": 2,
  "train.save_every": 1, "train.watch_every": 0, "train.natural_every": 0,
  "evaluation.tasks": 6, "evaluation.questions": 0, "evaluation.max_turns": 3,
}  # fmt: skip


def _rows(path):
  return [row for _, row in records.read_jsonl(path)]


def test_the_last_point_is_the_evaluation(tmp_path):
  subprocess.run(
      [
          sys.executable, "-m", "pivotrl_jax.main",
          "--config=configs/swe.py:tiny", f"--workdir={tmp_path}",
          *(f"--config.{key}={value}" for key, value in _VALUES.items()),
      ],
      cwd=ROOT, check=True,
  )  # fmt: skip
  folder = tmp_path / tables.CURVE
  made = curve.play(tmp_path)
  assert made == [folder / "1.jsonl", folder / "2.jsonl"]
  trained = [
    row | {"policy": "step 2"}
    for row in _rows(tmp_path / "evals.jsonl")
    if row["policy"] == "trained"
  ]
  assert len(trained) == 6 and _rows(made[1]) == trained
  assert {row["policy"] for row in _rows(made[0])} == {"step 1"}
  assert curve.play(tmp_path) == []
  # What is missing alone is played, of a checkpoint that is whole.
  made[0].unlink()
  assert curve.play(tmp_path) == [made[0]]
  made[0].unlink()
  checksums = tmp_path / "checkpoints" / "1" / "checksums.json"
  checksums.write_text("{}")
  with pytest.raises(errors.InputError, match="damaged; expected a whole"):
    curve.play(tmp_path)
