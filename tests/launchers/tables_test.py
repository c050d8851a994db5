"""The paper's tables from runs of a sweep, by hand."""

import csv
import json
import re
import shutil
import time

import numpy as np
import pytest

from launchers import tables
from launchers.runs import attempt
from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors
from pivotrl_jax.evaluation import intervals

# Domain -> arm -> suite -> success of its tasks, alike for both seeds.
SCORES = {
  "tau": {
    "base": {"tau": "1000", "contest": "11"},
    "sft": {"tau": "1100", "contest": "10"},
    "pivotrl": {"tau": "1110", "contest": "11"},
  },
  "swe": {
    "base": {"swe": "0000", "contest": "11"},
    "sft": {"swe": "1000", "contest": "00"},
    "pivotrl": {"swe": "1100", "contest": "11"},
  },
}
TASKS = {"tau": "tau-{}-eval-{}", "swe": "swe-eval-{1}", "contest": "c{1}"}


def _evals(domain, arm):
  rows = []
  for policy, who in (("base", "base"), ("trained", arm)):
    for suite, bits in SCORES[domain][who].items():
      for i, bit in enumerate(bits):
        task = TASKS[suite].format(("retail", "airline")[i % 2], i)
        rows.append({
          "policy": policy, "suite": suite, "task": task, "seed": 0,
          "success": bit == "1",
        })  # fmt: skip
  return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def root(tmp_path):
  rows = []
  for domain in SCORES:
    for arm in ("sft", "pivotrl"):
      for seed in range(2):
        job = root_lib.Job(
          name=f"{arm},{domain},{seed}", arm=arm, seed=seed,
          config=f"configs/{domain}.py", overrides={}, command=("x",),
          stages=(),
        )  # fmt: skip
        rows.append(root_lib.Row(job, False, status.Status("waiting")))
        path = tmp_path / job.name
        path.mkdir()
        (path / "config.json").write_text(
          json.dumps({"config": {"domain": domain}})
        )
        attempt.record(path, started=time.time(), command=job.command)
        if (domain, arm, seed) == ("swe", "sft", 1):
          continue  # Killed.
        attempt.record(path, ended=time.time(), status=0, cause="")
        (path / "evals.jsonl").write_text(_evals(domain, arm))
        if arm == "pivotrl":
          steps = [
            {"step": n, "signal/reward_std": 0.5 - 0.1 * n,
             "rollout/turns_total": 100.0 * n}
            for n in (1, 2)
          ]  # fmt: skip
          text = "".join(json.dumps(row) + "\n" for row in steps)
          (path / "metrics.jsonl").write_text(text)
  root_lib.write(tmp_path, rows)
  return tmp_path


def _cells(root, name):
  matrix = tables.Matrix(tables.load(root)[0])
  (table,) = [t for t in tables.tables(matrix) if t.name == name]
  means = {
    row[0]: [x if isinstance(x, str) else round(x[0], 6) for x in row[1:]]
    for row in table.rows
  }
  return table, means


def test_in_domain(root):
  _, rows = _cells(root, "table1")
  # Of four tasks: base 1, sft 2, pivotrl 3.
  assert rows["tau"] == [0.25, 0.5, 0.75, 0.25, 0.5, 0.25]
  assert rows["swe"] == [0.0, 0.25, 0.5, 0.25, 0.5, 0.25]
  assert rows["mean"] == ["", "", "", 0.25, 0.5, 0.25]


def test_out_of_domain(root):
  _, rows = _cells(root, "table2")
  # SFT loses 1 of 2 on tau, 2 of 2 on swe.
  assert rows["contest"] == rows["mean"] == [1.0, -0.75, 0.0, 0.75]
  _, rows = _cells(root, "table3")
  assert rows["contest"] == [-0.5, 0.0, -1.0, 0.0]


def test_arms_by_kind_of_task(root):
  table, rows = _cells(root, "arms_tau")
  assert table.head[1:3] == ("airline", "retail")
  # Tasks 1 and 3 are of the airline, 0 and 2 of the shop.
  assert rows["sft"] == [0.5, 0.5, 0.5, 0.25, -0.25]
  assert rows["base"] == [0.0, 0.5, 0.25, "", -0.5]


def test_signals_are_means_over_seeds(root):
  matrix = tables.Matrix(tables.load(root)[0])
  rows = {row[:2]: row[2:] for row in tables.cost(matrix).rows}
  assert rows["tau", "pivotrl"][:2] == ("0.4", "0.3")
  assert rows["tau", "pivotrl"][-1] == "200"
  assert rows["tau", "sft"] == ("",) * 7


def test_turns_to_equal_success_by_hand():
  # The lower of the best is 0.5. The first has 0.4 at 10 and 0.6 at 20: 15;
  # the second is there at 80.
  turns = [np.array([0, 10, 20]), np.array([0, 40, 80])]
  means = [np.array([0.2, 0.4, 0.6]), np.array([0.2, 0.2, 0.5])]
  assert tables.turns_to_equal(turns, means) == [15.0, 80.0]
  # Nothing rose: no turn is needed.
  flat = [np.array([0.2, 0.1, 0.2]), means[1]]
  assert tables.turns_to_equal(turns, flat) == [0.0, 0.0]


def _play(root, arm, seed, bits_at):
  """A curve of swe's four tasks: step -> their success."""
  folder = root / f"{arm},swe,{seed}" / tables.CURVE
  folder.mkdir(exist_ok=True)
  for step, bits in bits_at.items():
    rows = [
      {"policy": f"step {step}", "suite": "swe", "task": f"swe-eval-{i}",
       "seed": 0, "success": bit == "1"}
      for i, bit in enumerate(bits)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{step}.jsonl").write_text(text)


def test_curves_of_success_over_turns(root, tmp_path):
  # PivotRL, of 100 turns a step, succeeds at 2 and 4 of four tasks; another
  # arm, of 400, at 1 and 3; both base policies at none.
  sft = root / "sft,swe,0"
  shutil.copyfile(
    root / "pivotrl,swe,0" / "metrics.jsonl", sft / "metrics.jsonl"
  )
  text = (sft / "metrics.jsonl").read_text()
  (sft / "metrics.jsonl").write_text(
    text.replace("100.0", "400.0").replace("200.0", "800.0")
  )
  _play(root, "pivotrl", 0, {1: "1100", 2: "1111"})
  _play(root, "sft", 0, {1: "1000", 2: "1110"})
  # A seed that the other arm has not.
  _play(root, "pivotrl", 1, {1: "1111", 2: "1111"})
  matrix = tables.Matrix(tables.load(root)[0])
  curves = matrix.curves("swe")
  assert list(curves["pivotrl"].turns) == [0, 100, 200]
  assert list(curves["sft"].turns) == [0, 400, 800]
  assert curves["pivotrl"].scores.shape == (3, 1, 4)
  assert list(curves["pivotrl"].scores.mean((1, 2))) == [0.0, 0.5, 1.0]
  rows = {row[0]: row[1:] for row in tables.turns_at(matrix, "swe").rows}
  # 0.75 is equal: PivotRL halfway from 100 to 200, the other at 800.
  assert rows["pivotrl"] == ("100.0", "150", "")
  assert rows["sft"][:2] == ("75.0", "800")
  assert rows["sft"][2].startswith("5.33 (")
  text = tables.write(root, tmp_path / "out")
  assert "Figure 1. Rollout turns on swe" in text
  assert (tmp_path / "out" / "figure1.png").stat().st_size > 1000
  _play(root, "sft", 0, {2: "111"})
  with pytest.raises(errors.InputError, match="step 2 of arm sft and base"):
    matrix.curves("swe")


def test_an_arm_that_samples_nothing_has_no_curve_over_turns(root):
  _play(root, "pivotrl", 0, {1: "1100", 2: "1111"})
  _play(root, "sft", 0, {1: "1000", 2: "1110"})
  (root / "sft,swe,0" / "metrics.jsonl").write_text('{"step": 1}\n')
  matrix = tables.Matrix(tables.load(root)[0])
  assert list(matrix.curves("swe")) == ["pivotrl"]
  assert not tables.turns_at(matrix, "swe").rows


def test_written(root, tmp_path):
  out = tmp_path / "out"
  text = tables.write(root, out)
  assert "Not done: 1 of 8 runs: sft,swe,1 stopped" in text
  assert "| tau | 25.0 (" in text and "| +50.0 (" in text
  assert "7 runs, 2 seeds, 4 tasks a run" in text
  with open(out / "table1.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert float(rows[0]["PivotRL over SFT"]) == 0.25
  low, high = (float(rows[0]["base" + end]) for end in ("_low", "_high"))
  assert low <= 0.25 <= high
  assert (out / "figure3.png").stat().st_size > 1000
  page = (out / "tables.html").read_text(encoding="utf-8")
  cells = re.findall("<td>(.*?)</td>", page)
  assert "tau" in cells and any(cell.startswith("+50.0 (") for cell in cells)
  assert page.count("<table>") == text.count("### ")
  assert 'src="figure3.png"' in page and "figure1" not in page


def test_runs_that_cannot_be_paired(root):
  path = root / "sft,tau,0" / "evals.jsonl"
  path.write_text(path.read_text().replace("tau-airline-eval-3", "other"))
  with pytest.raises(errors.InputError, match="on other tasks"):
    _cells(root, "table1")
  with pytest.raises(errors.InputError, match="no run is done"):
    tables.load(root / "nowhere")


def test_bootstrap_has_the_interval_of_the_normal():
  rng = np.random.default_rng(0)
  values = rng.normal(0.3, 1.0, (1, 400))
  mean, low, high = intervals.bootstrap_mean([values])
  # One seed: over tasks alone, +-1.96 / sqrt(400) of a std near 1.
  half = 1.96 * values.std() / 20
  assert mean == pytest.approx(values.mean())
  assert (high - low) / 2 == pytest.approx(half, rel=0.05)
  # A group's weight is its own, whatever its size.
  assert intervals.bootstrap_mean(
    [np.zeros((2, 3)), np.ones((5, 7))]
  ) == pytest.approx((0.5, 0.5, 0.5))


def test_a_profile_is_turns_without_success():
  # Of 300 turns up to the first step 100 are its own.
  rows = [{"step": 1, "rollout/turns_total": 300.0, "rollout/turns": 100.0}]
  assert tables._before(rows) == 200
