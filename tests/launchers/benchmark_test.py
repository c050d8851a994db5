"""A row of the benchmark: what it writes, and that nothing is computed twice."""

import json
import pathlib
import subprocess
import sys

import pytest

LAUNCHER = (
  pathlib.Path(__file__).parent.parent.parent / "launchers" / "benchmark.py"
)


@pytest.mark.parametrize(
  "work, figure",
  [("grpo_step", "seconds_per_step"), ("profile", "candidates_per_second")],
)
def test_a_row(tmp_path, work, figure):
  out = tmp_path / "row.json"
  subprocess.run(
      [
          sys.executable, str(LAUNCHER), f"--work={work}", "--shape=2,4,256,16",
          f"--json={out}", "--steps=1",
      ],
      check=True, capture_output=True,
  )  # fmt: skip
  row = json.loads(out.read_text())
  assert row["shape"] == [2, 4, 256, 16]
  assert row[figure] > 0 and row["peak_gib"] > 0
  assert row["recompilations"] == 0
  # 256 tokens and 4 actions of 16 a pivot, prefilled and decoded, then
  # trained on: 2 * 2 * (256 + 4 * 16) = 1,280; both turns of the profile lie
  # on one trunk: 256 + 2 * 4 * 16 = 384.
  least = {"grpo_step": 1280, "profile": 384}[work]
  assert row["tokens_computed"] == row["tokens_least"] == least
