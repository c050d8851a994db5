"""A signal at any moment, and the same command again: the same bytes.

$PIVOTRL_SIGNALS is how many random ones a run gets, 4 by default; where it is
set, a run of natural steps is killed too.

Slow (over a minute) because it runs whole jobs in processes of their own:
nothing less shows what a killed process leaves behind.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from ml_collections import config_dict
import pytest

import reads

ROOT = pathlib.Path(__file__).parent.parent
ARTIFACTS = (
    "trajectories.jsonl", "candidates.jsonl", "profiles.jsonl",
    "pivots.jsonl", "metrics.jsonl", "rollouts.jsonl", "evals.jsonl",
    "skipped.jsonl",
    "export/model.safetensors", "export/config.json", "report/report.md",
    "report/report.html",
)  # fmt: skip


SIGNALS = int(os.environ.get("PIVOTRL_SIGNALS", "4"))
OVERRIDES = {
  "train.steps": 3 * SIGNALS // 4,  # Long enough to meet them all.
  "profile.trajectories_per_batch": 2, "train.save_every": 1,
  "select": "random", "train.natural_every": 0, "evaluation.tasks": 2, "evaluation.questions": 2,
  "evaluation.max_turns": 2,
}  # fmt: skip


def _start(workdir, cache, *args, program=("-m", "pivotrl_jax.main")):
  overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
  return _process(
    cache, *program, "--config=configs/swe.py:tiny", f"--workdir={workdir}",
    *overrides, *args,
  )  # fmt: skip


def _process(cache, *args):
  return subprocess.Popen(
      [sys.executable, *args],
      cwd=ROOT, stderr=subprocess.PIPE, text=True,
      env={
          "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"),
          "JAX_PLATFORMS": "cpu", "PIVOTRL_CACHE": str(cache),
          "PYTHONPATH": str(ROOT),
      },
  )  # fmt: skip


def _bytes(workdir):
  return {name: (workdir / name).read_bytes() for name in ARTIFACTS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody killed, and its cache of compiled programs.

  What its stages read of the config is noted in `reads.json` of the cache's
  folder.
  """
  folder = tmp_path_factory.mktemp("whole")
  program = (str(ROOT / "tests" / "reads.py"), str(folder / "reads.json"))
  run = _start(folder / "w", folder / "cache", program=program)
  _, stderr = run.communicate(timeout=600)
  assert run.returncode == 0, stderr
  # Warnings of compilations.py: programs after the warm-up of a stage.
  late = [line for line in stderr.splitlines() if "programs compiled" in line]
  assert any(line.startswith("I") for line in late), stderr
  assert not any(line.startswith("W") for line in late), late
  return _bytes(folder / "w"), folder / "cache"


def _signalled(run, number, ready):
  """Sends `number` once `ready()`; exit status and standard error."""
  end = time.monotonic() + 300
  while run.poll() is None and time.monotonic() < end:
    if ready() and _listens(run.pid):
      run.send_signal(number)
      break
    time.sleep(0.005)
  _, stderr = run.communicate(timeout=300)
  return run.returncode, stderr


def _listens(pid):
  """Whether a process has got as far as its handler of SIGTERM."""
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  caught = re.search(r"SigCgt:\s*(\w+)", status)
  return caught is not None and bool(
    int(caught[1], 16) >> (signal.SIGTERM - 1) & 1
  )


def _assert_one_line(number, status, stderr):
  """What a signal leaves on standard error, and its exit status."""
  assert "Traceback" not in stderr, stderr
  assert "could not be restored" not in stderr, stderr
  if number == signal.SIGKILL:
    assert status == -signal.SIGKILL, stderr
    return
  assert status == 128 + number, stderr
  lines = [x for x in stderr.splitlines() if x.startswith("error: ")]
  assert lines == [stderr.splitlines()[-1]], stderr
  assert signal.Signals(number).name in lines[0]


def _lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


def test_programs_are_kept_between_runs(whole):
  _, cache = whole
  kept = {path.name.rsplit("-", 2)[0] for path in cache.iterdir()}
  assert {"jit__decode", "jit_train_step"} <= kept


def test_keys_hold_what_stages_read(whole):
  _, cache = whole
  workdir = cache.parent / "w"
  config = config_dict.ConfigDict(
    json.loads((workdir / "config.json").read_text())["config"]
  )
  seen = json.loads((cache.parent / "reads.json").read_text())
  assert len(seen) == 8
  reads.assert_keys_hold(config, seen)


def test_interrupted_three_times_ends_in_the_same_bytes(whole, tmp_path):
  want, cache = whole
  number = signal.SIGTERM
  found = _signalled(
    _start(tmp_path, cache),
    number,
    lambda: _lines(tmp_path / "profiles.jsonl.partial") > 0,
  )
  _assert_one_line(number, *found)
  assert not (tmp_path / "profiles.jsonl").exists()
  assert _lines(tmp_path / "profiles.jsonl.partial") > 0
  # A signal within a step: that step's checkpoint, though none was due.
  number = signal.SIGINT
  found = _signalled(
    _start(tmp_path, cache, "--config.train.save_every=20"),
    number,
    lambda: _lines(tmp_path / "metrics.jsonl") > 0,
  )
  _assert_one_line(number, *found)
  saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
  assert saved == [_lines(tmp_path / "metrics.jsonl")]
  number = signal.SIGKILL
  found = _signalled(
    _start(tmp_path, cache), number, (tmp_path / "export").exists
  )
  _assert_one_line(number, *found)
  run = _start(tmp_path, cache)
  _, stderr = run.communicate(timeout=600)
  assert run.returncode == 0, stderr
  assert "import: done before" in stderr
  _assert_same(tmp_path, want)


def test_a_killed_natural_run_ends_in_the_same_bytes(whole, tmp_path):
  if "PIVOTRL_SIGNALS" not in os.environ:
    pytest.skip("minutes: set PIVOTRL_SIGNALS=4")
  _, cache = whole
  found = []
  for kill in (False, True):
    workdir = tmp_path / str(kill)
    shutil.copytree(cache.parent / "w", workdir)
    train = (
        workdir, cache, "--config.optimizer=natural", "--stages=train",
        "--redo=train",
    )  # fmt: skip
    if kill:
      status, stderr = _signalled(
        _start(*train),
        signal.SIGKILL,
        lambda metrics=workdir / "metrics.jsonl": 0 < _lines(metrics) < 3,
      )
      assert status == -signal.SIGKILL, stderr
    run = _start(*train)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == 0, stderr
    rows = (workdir / "metrics.jsonl").read_bytes()
    assert rows.count(b"natural_kl_measured") == OVERRIDES["train.steps"]
    found.append((rows, (workdir / "export/model.safetensors").read_bytes()))
  assert found[0] == found[1]


def _assert_same(workdir, want):
  got = _bytes(workdir)
  for name in ARTIFACTS:
    assert got[name] == want[name], name
  # Nothing was redone that would have had to give way.
  assert not list(workdir.glob("previous/*/*[!n]"))


def test_random_signals_end_in_the_same_bytes(whole, tmp_path):
  """SIGTERM, SIGINT and SIGKILL at seeded times from a start on."""
  want, cache = whole
  rng = random.Random(0)
  sent = []
  for _ in range(SIGNALS):
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    run, began = _start(tmp_path, cache), time.monotonic()
    delay = rng.uniform(0, max(12, 120 / SIGNALS))
    found = _signalled(
      run, number, lambda since=began, d=delay: time.monotonic() - since > d
    )
    if found[0]:
      _assert_one_line(number, *found)
      sent.append((number.name, round(delay, 1)))
  assert sent
  print("signals sent, seconds after a start:", sent)
  run = _start(tmp_path, cache)
  _, stderr = run.communicate(timeout=600)
  assert run.returncode == 0, stderr
  _assert_same(tmp_path, want)
