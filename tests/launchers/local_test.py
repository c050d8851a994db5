"""The local launcher: kills at any moment, failures, signals, one at a time.

Stand-ins run in place of main (stand_in.py), launched by driver.py; the last
test launches main itself.
"""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launchers.executors import local
from launchers.runs import root as root_lib
from pivotrl_jax import errors
from tests.launchers import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launchers" / "launch.py"


def _start(root, runs, *args):
  return subprocess.Popen(
      [
          sys.executable, "-m", "tests.launchers.driver", f"--root={root}",
          "--at_once=2",
          f"--runs={json.dumps(runs)}", *args,
      ],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def _end(launcher, timeout=60):
  stdout, stderr = launcher.communicate(timeout=timeout)
  return launcher.returncode, stdout, stderr


def _status(root):
  done = subprocess.run(
      [sys.executable, str(LAUNCH), "status", f"--root={root}"],
      capture_output=True, text=True, check=True,
  )  # fmt: skip
  return done.stdout


def _columns(table):
  """run -> state, step, success: what no kill may change."""
  found = {}
  for line in table.splitlines()[1:-1]:
    words = line.split()
    found[words[0]] = (words[1], [w for w in words if "%" in w])
  return found


def _runs(root):
  """Pids of the runs themselves, without their attempts."""
  return {
    pid
    for pid, words in processes.naming(root).items()
    if words[1:3] == [b"-m", b"tests.launchers.stand_in"]
  }


def _until(ready, seconds=30):
  end = time.monotonic() + seconds
  while not ready():
    assert time.monotonic() < end
    time.sleep(0.02)


def _steps(root):
  return sum(f.read_bytes().count(b"\n") for f in root.glob("*/metrics.jsonl"))


RUNS = {f"seed={seed}": {"seed": seed} for seed in range(4)}


def test_five_kills_end_in_the_same_table(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  code, table, stderr = _end(_start(whole, RUNS))
  assert code == 0, stderr
  for steps in (0, 3, 9, 15, 25):
    launcher = _start(killed, RUNS)
    _until(
      lambda n=steps: _steps(killed) >= n and processes.naming(killed / "s")
    )
    # First the launcher: it may be about to start what no list has yet.
    processes.kill([launcher.pid])
    _end(launcher)
    processes.kill(processes.naming(killed))
    # Its command line is gone a moment before its lock.
    _until(lambda: "running" not in _status(killed))
  code, again, stderr = _end(_start(killed, RUNS))
  assert code == 0, stderr
  assert _columns(again) == _columns(table)
  assert len(_columns(table)) == 4
  for name in RUNS:
    for file in ("metrics.jsonl", "evals.jsonl", "trajectories.jsonl"):
      got = (killed / name / file).read_bytes()
      assert got == (whole / name / file).read_bytes()
  # The import was done once, in one folder, and linked.
  stages = [
    json.loads(line)["stage"]
    for file in killed.glob("seed=*/timings.jsonl")
    for line in file.read_text().splitlines()
  ]
  assert "import" not in stages
  assert (killed / "seed=0" / "trajectories.jsonl").stat().st_nlink == 5


def test_what_outlives_a_killed_launcher_is_found_and_not_started_twice(
  tmp_path,
):
  go = tmp_path / "go"
  a = {"until": str(go)}
  launcher = _start(tmp_path, {"a": a})
  _until(lambda: _steps(tmp_path) > 2)
  # The launcher and the attempt die, the run itself goes on.
  processes.kill(
    [launcher.pid, *processes.naming(tmp_path / "a").keys() - _runs(tmp_path)]
  )
  _end(launcher)
  assert "running" in _status(tmp_path)
  launcher = _start(tmp_path, {"a": a, "b": {}})
  _until(lambda: (tmp_path / "b" / "evals.jsonl").exists())
  assert len(processes.naming(tmp_path / "a")) == 1
  go.touch()
  code, _, stderr = _end(launcher)
  assert code == 0, stderr
  assert "new: b" in stderr and "a: running" in stderr
  rows = (tmp_path / "a" / "metrics.jsonl").read_bytes().splitlines()
  assert [json.loads(row)["step"] for row in rows] == list(range(1, 9))


def test_a_failure_is_one_line_with_its_cause_and_the_others_go_on(tmp_path):
  runs = {
    "bad": {"fails": 2},
    "dies": {"fails": 3},
    "killed": {"until": "/never"},
    "leaves": {"leaves": "train"},
    "good": {"seed": 3},
  }
  launcher = _start(tmp_path, runs, "--tries=2")
  shot = set()
  for _ in range(2):  # A killed process may be seen for a moment longer.
    _until(lambda dead=frozenset(shot): _runs(tmp_path / "killed") - dead)
    shot |= _runs(tmp_path / "killed")
    processes.kill(shot)
  code, table, stderr = _end(launcher)
  assert code == 1, stderr
  lines = {line.split()[0]: line for line in table.splitlines()[1:-1]}
  assert "--config.fails: asked to" in lines["bad"]
  assert "killed by SIGKILL" in lines["killed"]
  assert lines["leaves"].split()[1] == "stopped"
  assert "train is not complete" in lines["leaves"]
  assert lines["good"].split()[1] == "done"
  # Bad input is not tried again; what dies is, as often as was asked.
  starts = {
    name: sum(
      "started" in json.loads(line)
      for line in (tmp_path / name / "attempts.jsonl").read_text().splitlines()
    )
    for name in runs
  }
  assert starts == {"bad": 1, "dies": 2, "killed": 2, "leaves": 2, "good": 1}
  assert _columns(_status(tmp_path)) == _columns(table)
  index = {row.job.name: row for row in root_lib.read(tmp_path)}
  assert index["bad"].status.state == "failed"
  assert index["bad"].job.command[-1] == "--config.fails=2"


def test_a_full_disk_is_one_runs_failure(tmp_path, small_disk):
  root = tmp_path / "root"
  root.mkdir()
  (root / "full").symlink_to(small_disk("4k"))
  code, table, stderr = _end(_start(root, {"full": {}, "good": {}}))
  assert code == 1, stderr
  lines = {line.split()[0]: line for line in table.splitlines()[1:-1]}
  assert lines["full"].split()[1] == "failed"
  assert "No space left" in lines["full"]
  assert lines["good"].split()[1] == "done"
  assert "No space left" in _status(root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_the_next_launch_goes_on(tmp_path, number):
  go = tmp_path / "go"
  runs = {"a": {"until": str(go)}, "b": {"until": str(go)}, "c": {}}
  launcher = _start(tmp_path, runs)
  _until(lambda: _steps(tmp_path) > 8)
  launcher.send_signal(number)
  code, table, _ = _end(launcher)
  assert code == 128 + number
  assert not processes.naming(tmp_path)
  assert [state for state, _ in _columns(table).values()] == [
    "stopped", "stopped", "waiting"
  ]  # fmt: skip
  go.touch()
  assert _end(_start(tmp_path, runs))[0] == 0


def test_a_second_launcher_is_refused(tmp_path):
  with open(tmp_path / root_lib.LOCK, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    code, _, stderr = _end(_start(tmp_path, {"a": {}}))
  assert code == 1 and "in use by another launcher" in stderr
  assert not (tmp_path / "a").exists()


def test_what_a_sweep_changed_is_told():
  def job(name, **overrides):
    return root_lib.Job(
      name=name, arm="x", seed=0, config="c.py", overrides=overrides,
      command=(), stages=(),
    )  # fmt: skip

  before = [root_lib.Row(job(name, lr=1), False, None) for name in ("a", "b")]
  assert root_lib.changes(before, [job("b", lr=2, k=3), job("c")]) == [
    "new: c",
    "gone from the sweep, its folder stays: a",
    "changed: b: lr from 1 to 2",
    "changed: b: k from None to 3",
  ]
  assert root_lib.changes([], [job("b")]) == []


def test_slots_share_cores_and_devices():
  cores = sorted(os.sched_getaffinity(0))
  one = local.slots(1)
  assert one == [local.Slot(tuple(cores))]
  two = local.slots(2, devices=["0", "1", "2", "3"], variable="V")
  assert [part.environment["V"] for part in two] == ["0,1", "2,3"]
  used = [core for part in local.slots(len(cores)) for core in part.cpus]
  assert sorted(used) == cores
  assert len(local.slots(1, threads=1)[0].cpus) == 1
  with pytest.raises(errors.InputError, match="1 devices"):
    local.slots(2, devices=["0"], variable="V")
