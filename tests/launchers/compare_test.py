"""Success by arm: what is paired, what is missing, by hand."""

import csv
import dataclasses
import io
import json
import time

import pytest

from launchers import compare
from launchers.runs import attempt
from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors

# Arm -> seed -> success of the tasks t0 to t3, where it is done.
BASE = {0: "1000", 1: "0100"}
ARMS = {
  "full": {0: "1110", 1: "1100"},
  "strict": {0: "1100", 1: None},
  "sft": {0: None, 1: None},
}


def _job(arm, seed):
  return root_lib.Job(
    name=f"{arm},seed={seed}", arm=arm, seed=seed, config="configs/swe.py",
    overrides={"seed": seed}, command=("x",), stages=(),
  )  # fmt: skip


@pytest.fixture
def root(tmp_path):
  rows = []
  for arm, seeds in ARMS.items():
    for seed, success in seeds.items():
      job = _job(arm, seed)
      rows.append(root_lib.Row(job, False, status.Status("waiting")))
      if success is None:
        continue
      path = tmp_path / job.name
      path.mkdir()
      attempt.record(path, started=time.time(), command=job.command)
      attempt.record(path, ended=time.time(), status=0, cause="")
      evals = [
        {
          "policy": policy, "suite": "swe", "task": f"t{i}", "seed": 0,
          "success": bit == "1",
        }
        for policy, bits in (("base", BASE[seed]), ("trained", success))
        for i, bit in enumerate(bits)
      ]  # fmt: skip
      text = "".join(json.dumps(row) + "\n" for row in evals)
      (path / "evals.jsonl").write_text(text)
  root_lib.write(tmp_path, rows)
  return tmp_path


def test_arms_are_paired_on_seeds_and_tasks(root):
  base, full, strict, sft = compare.compare(root)
  assert [line.arm for line in (base, full, strict, sft)] == [
    "base", "full", "strict", "sft"
  ]  # fmt: skip
  # 2 of 8; 5 of 8; 2 of 4 with the one seed that is done.
  assert (base.success[0], full.success[0]) == (0.25, 0.625)
  assert strict.success[0] == 0.5
  assert full.over_base[0] == 0.375 and base.over_other[0] == -0.375
  # On seed 0 alone: 2 of 4 less 3 of 4, and less 1 of 4.
  assert strict.over_other[0] == -0.25 and strict.over_base[0] == 0.25
  assert strict.over_other[1] < -0.25 < strict.over_other[2]
  assert strict.missing == ("strict,seed=1 waiting",) and strict.runs == (1, 2)
  assert sft.success is sft.over_base is None and sft.runs == (0, 2)


def test_tables(root):
  lines = compare.compare(root)
  text = compare.markdown(lines, "full")
  assert "| arm | runs | success | over base | over full |" in text
  assert "| full | 2 of 2 | 62.5 (" in text
  assert "1 of 2 (strict,seed=1 waiting)" in text
  assert "| sft | 0 of 2 (sft,seed=0 waiting; sft,seed=1 waiting) |" in text
  out = io.StringIO()
  compare.write_csv(lines, out)
  rows = list(csv.DictReader(io.StringIO(out.getvalue())))
  assert [row["arm"] for row in rows] == ["base", "full", "strict", "sft"]
  assert float(rows[1]["over_base"]) == 0.375 and rows[0]["over_base"] == ""


def test_what_cannot_be_compared_is_refused(root):
  with pytest.raises(errors.InputError, match="expected mixed"):
    compare.compare(root, "mixed")
  file = root / "strict,seed=0" / "evals.jsonl"
  file.write_text(file.read_text().replace('"t3"', '"t9"'))
  with pytest.raises(errors.InputError, match="seed 0: evaluated on other"):
    compare.compare(root)


def test_a_warm_start_is_no_base(root):
  # Its own policy before training solves all.
  job = dataclasses.replace(
    _job("warm", 2), overrides={"seed": 2, "warm_start.steps": 4}
  )
  path = root / job.name
  path.mkdir()
  attempt.record(path, started=time.time(), command=job.command)
  attempt.record(path, ended=time.time(), status=0, cause="")
  evals = [
    {"policy": policy, "suite": "swe", "task": f"t{i}", "seed": 0,
     "success": True}
    for policy in ("base", "trained") for i in range(4)
  ]  # fmt: skip
  text = "".join(json.dumps(row) + "\n" for row in evals)
  (path / "evals.jsonl").write_text(text)
  before = compare.compare(root)[0]
  rows = root_lib.read(root)
  root_lib.write(
    root, [*rows, root_lib.Row(job, False, status.Status("waiting"))]
  )
  base, *arms = compare.compare(root)
  assert base.success == before.success
  assert [line.arm for line in arms][-1] == "warm"
