"""The Slurm launcher: the script it writes runs under a stand-in Slurm."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from launchers.executors import slurm
from launchers.runs import root as root_lib

ROOT = pathlib.Path(__file__).parent.parent.parent
STAND_IN = pathlib.Path(__file__).parent / "slurm_stand_in.py"


@pytest.fixture
def cluster(tmp_path):
  """An environment with a Slurm."""
  places = tmp_path / "bin", tmp_path / "state"
  for place in places:
    place.mkdir()
  for name in ("sbatch", "scontrol", "srun"):
    file = places[0] / name
    file.write_text(
      f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {name} "$@"\n'
    )
    file.chmod(0o755)
  return {
    **os.environ,
    "PATH": f"{places[0]}:{os.environ['PATH']}",
    "STAND_IN_STATE": str(places[1]),
    "STAND_IN_SIGNAL_WHEN": str(tmp_path / "signal"),
  }


def _launch(root, runs, environment, *args):
  return subprocess.run(
      [
          sys.executable, "-m", "tests.launchers.driver", f"--root={root}",
          "--executor=slurm", f"--runs={json.dumps(runs)}", *args,
      ],
      cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
      timeout=60,
  )  # fmt: skip


def _statuses(workdir):
  rows = (workdir / "attempts.jsonl").read_text().splitlines()
  return [r["status"] for r in map(json.loads, rows) if "status" in r]


def _states(root):
  return {
    row.job.name: root_lib.stands(root, row).state
    for row in root_lib.read(root)
    if row.job.arm
  }


def test_an_array_runs_every_job_after_what_it_needs(tmp_path, cluster):
  runs = {"a": {"seed": 1}, "b": {"fails": 2}, "c": {"fails": 7}}
  done = _launch(
    tmp_path / "r", runs, cluster, "--sbatch=--partition=gpu", "--tries=2"
  )
  assert done.returncode == 0, done.stderr
  assert _states(tmp_path / "r") == {"a": "done", "b": "failed", "c": "failed"}
  # Bad input once; what dies is queued again, once of two tries.
  assert _statuses(tmp_path / "r" / "b") == [2]
  assert _statuses(tmp_path / "r" / "c") == [7, 7]
  assert (tmp_path / "r" / "a" / "trajectories.jsonl").stat().st_nlink == 4
  script = (tmp_path / "r" / slurm.SCRIPT).read_text()
  assert "#SBATCH --partition=gpu\n" in script
  submitted = (tmp_path / "r" / slurm.SUBMITTED).read_text().splitlines()
  assert [json.loads(row) for row in submitted] == [
    {"job": "100", "names": ["shared/import-0"]},
    {"job": "101", "names": ["a", "b", "c"]},
  ]


def test_the_time_limits_signal_reaches_the_run_which_goes_on(
  tmp_path, cluster
):
  root, go = tmp_path / "r", tmp_path / "go"

  def near_the_limit():
    end = time.monotonic() + 40
    metrics = root / "a" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
      assert time.monotonic() < end
      time.sleep(0.02)
    (tmp_path / "signal").touch()
    while not _statuses(root / "a"):
      assert time.monotonic() < end
      time.sleep(0.02)
    go.touch()

  thread = threading.Thread(target=near_the_limit)
  thread.start()
  done = _launch(root, {"a": {"until": str(go)}}, cluster)
  thread.join()
  assert done.returncode == 0, done.stderr
  assert _statuses(root / "a") == [143, 0]
  assert _states(root) == {"a": "done"}
  rows = (root / "a" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == list(range(1, 9))


def test_hosts_are_told_the_coordinator_their_count_and_index(
  tmp_path, cluster
):
  done = _launch(tmp_path / "r", {"a": {}}, cluster, "--hosts=2")
  assert done.returncode == 0, done.stderr
  assert _states(tmp_path / "r") == {"a": "done"}
  told = (tmp_path / "r" / "a" / "log-1.txt").read_text().splitlines()[-1]
  given = json.loads(told)
  # Job 101: 20000 + 101.
  assert given["coordinator"] == "node1:20101"
  assert (given["processes"], given["process"]) == ("2", "1")


def test_without_sbatch_the_commands_are_printed(tmp_path):
  done = _launch(
    tmp_path / "r", {"a": {}, "b": {}}, dict(os.environ), "--at_once=1"
  )
  assert done.returncode == 0, done.stderr
  script = tmp_path / "r" / slurm.SCRIPT
  assert done.stdout.splitlines() == [
    f"job0=$(sbatch --parsable --array=0%1 {script})",
    "job1=$(sbatch --parsable --array=1-2%1 --dependency=afterany:$job0"
    f" {script})".replace(" --dependency=afterany:$job0",
                          ' "--dependency=afterany:$job0"'),
  ]  # fmt: skip
  assert (
    subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
  )
  assert str(script) in done.stderr
