"""kill -9 at any moment, and the same command again: the same bytes.

Slow (over a minute) because it runs whole jobs in processes of their own:
nothing less shows what a killed process leaves behind.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ARTIFACTS = (
    "trajectories.jsonl", "candidates.jsonl", "profiles.jsonl",
    "pivots.jsonl", "metrics.jsonl", "evals.jsonl", "skipped.jsonl",
    "export/model.safetensors", "export/config.json", "report/report.md",
    "report/report.html",
)  # fmt: skip


def _start(workdir, cache):
  return subprocess.Popen(
      [
          sys.executable, "-m", "pivotrl_jax.main",
          "--config=configs/swe.py:tiny", f"--workdir={workdir}",
          "--config.profile.trajectories_per_batch=2",
          "--config.train.save_every=1", "--config.select=random",
          "--config.train.natural_every=2",  # Of three steps the 1st and 3rd.
          "--config.evaluation.tasks=2", "--config.evaluation.questions=2",
          "--config.evaluation.max_turns=2",
      ],
      cwd=ROOT, stderr=subprocess.PIPE, text=True,
      env={
          "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"),
          "JAX_PLATFORMS": "cpu", "PIVOTRL_CACHE": str(cache),
      },
  )  # fmt: skip


def _bytes(workdir):
  return {name: (workdir / name).read_bytes() for name in ARTIFACTS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody killed, and its cache of compiled programs."""
  folder = tmp_path_factory.mktemp("whole")
  run = _start(folder / "w", folder / "cache")
  _, stderr = run.communicate(timeout=600)
  assert run.returncode == 0, stderr
  # Warnings of compilations.py: programs after the warm-up of a stage.
  late = [line for line in stderr.splitlines() if "programs compiled" in line]
  assert any(line.startswith("I") for line in late), stderr
  assert not any(line.startswith("W") for line in late), late
  return _bytes(folder / "w"), folder / "cache"


def _killed_when(workdir, cache, ready):
  """Kills a run -9 once `ready(workdir)`; whether it got there."""
  run = _start(workdir, cache)
  end = time.monotonic() + 300
  while run.poll() is None and time.monotonic() < end:
    if ready(workdir):
      run.send_signal(signal.SIGKILL)
      break
    time.sleep(0.005)
  run.communicate()
  return run.returncode == -signal.SIGKILL


def _lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


def test_programs_are_kept_between_runs(whole):
  _, cache = whole
  kept = {path.name.rsplit("-", 2)[0] for path in cache.iterdir()}
  assert {"jit__decode", "jit_train_step"} <= kept


def test_killed_twice_ends_in_the_same_bytes(whole, tmp_path):
  want, cache = whole
  assert _killed_when(
    tmp_path, cache, lambda w: _lines(w / "profiles.jsonl.partial") > 0
  )
  assert not (tmp_path / "profiles.jsonl").exists()
  assert _killed_when(
    tmp_path, cache, lambda w: _lines(w / "metrics.jsonl") > 1
  )
  assert not (tmp_path / "export").exists()
  run = _start(tmp_path, cache)
  _, stderr = run.communicate(timeout=600)
  assert run.returncode == 0, stderr
  assert "import: done before" in stderr
  got = _bytes(tmp_path)
  for name in ARTIFACTS:
    assert got[name] == want[name], name
