"""Runs of several processes: the bytes of one, whatever ends them meanwhile.

Slow (most of a minute) because every process of a run is one: it imports and
compiles for itself. $PIVOTRL_HOSTS is how many random kills a run gets; where
it is set, four processes and pmap are compared too (many minutes).
"""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

from configs import swe
from pivotrl_jax import hosts
from pivotrl_jax import main
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import loop
from pivotrl_jax.train import state as state_lib

ROOT = pathlib.Path(__file__).parent.parent
DEVICES = 4
KILLS = int(os.environ.get("PIVOTRL_HOSTS", "0"))
MANY = pytest.mark.skipif(not KILLS, reason="many minutes: set PIVOTRL_HOSTS=2")
ARTIFACTS = (
    "profiles.jsonl", "pivots.jsonl", "metrics.jsonl", "rollouts.jsonl",
    "skipped.jsonl", "export/model.safetensors",
)  # fmt: skip
EVALS = ("base_evals.jsonl", "evals.jsonl")
OVERRIDES = {
  "select": "random", "pivots.keep_all_fail": True, "data.trajectories": 4,
  "profile.group_size": 2, "profile.trajectories_per_batch": 1,
  "rollout.pivots_per_step": 3, "rollout.group_size": 2,
  "rollout.max_tokens": 16, "train.kl_coef": 1.0, "train.save_every": 1,
  "train.natural_every": 0, "train.watch_prompts": 0,
  "train.parallel": "sharded", "evaluation.tasks": 2,
  "evaluation.max_turns": 1, "evaluation.questions": 5,
}  # fmt: skip


def _config(small, **changes):
  config = swe.get_config("tiny")
  config.model.path = small
  config.update_from_flattened_dict(OVERRIDES | changes)
  return config


@pytest.fixture(scope="module")
def ready(small, tmp_path_factory):
  """A workdir with candidates, and the checkpoint of another run.

  A random policy earns nothing; what it learns from is how far that
  checkpoint's is from it (`kl_coef`).
  """
  folder = tmp_path_factory.mktemp("ready")
  config = _config(small)
  main.run(config, folder / "w", ["import", "candidates"])
  policy = policy_lib.starting(config, folder / "w")
  away = jax.tree.map(
    lambda x: x + 0.02 * jnp.sin(jnp.arange(x.size)).reshape(x.shape),
    policy.params,
  )
  state = state_lib.create(away, loop.optimizer(config))
  with checkpoints.Checkpoints(folder / "other", keep=1, policy="p") as saved:
    saved.save(1, state.replace(step=state.step + 1))
  return folder


class _Run:
  """The processes of a run on `devices` devices, all together."""

  def __init__(
    self, ready, workdir, count, small, stages="profile,select,train", *,
    devices=DEVICES, **changes,
  ):  # fmt: skip
    if not workdir.exists():
      shutil.copytree(ready / "w", workdir)
    overrides = OVERRIDES | {
      "model.path": small, "train.init": ready / "other",
      "train.steps": 4,
    } | changes  # fmt: skip
    with socket.create_server(("", 0)) as free:
      port = free.getsockname()[1]
    self._processes = [
      subprocess.Popen(
          [
              sys.executable, "-m", "pivotrl_jax.main",
              "--config=configs/swe.py:tiny", f"--workdir={workdir}",
              f"--stages={stages}", f"--coordinator=127.0.0.1:{port}",
              f"--processes={count}", f"--process={i}",
              "--initialization_timeout=20",
              *(f"--config.{k}={v}" for k, v in overrides.items()),
          ],
          cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
          text=True,
          env={
              "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"),
              "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
              "PIVOTRL_CACHE": str(ready / "cache"),
              # As many threads of XLA, however many devices a process has.
              "NPROC": str(DEVICES),
              "XLA_FLAGS": "--xla_force_host_platform_device_count="
                           f"{devices // count}",
          },
      )
      for i in range(count)
    ]  # fmt: skip

  def signal(self, number, index, ready):
    """Sends a signal to one of the processes, once `ready()`."""
    end = time.monotonic() + 300
    while self._lives() and time.monotonic() < end:
      if ready() and _listens(self._processes[index].pid):
        self._processes[index].send_signal(number)
        return
      time.sleep(0.005)

  def ended(self, timeout=600):
    """(Status, standard error) of each; all end within the time."""
    return [
      (process.wait(), stderr)
      for process in self._processes
      for _, stderr in [process.communicate(timeout=timeout)]
    ]

  def _lives(self):
    return all(process.poll() is None for process in self._processes)


def _listens(pid):
  """Whether a process has got as far as its handler of SIGTERM."""
  status = pathlib.Path(f"/proc/{pid}/status").read_text()
  caught = re.search(r"SigCgt:\s*(\w+)", status)
  return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _assert_well(ended):
  assert all(status == 0 for status, _ in ended), ended


def _errors(stderr):
  return [x for x in stderr.splitlines() if x.startswith("error: ")]


def _assert_one_line(stderr, *parts):
  assert "Traceback" not in stderr, stderr
  (line,) = _errors(stderr)
  for part in parts:
    assert part in line


def _bytes(workdir, names=ARTIFACTS):
  return {name: (workdir / name).read_bytes() for name in names}


def _assert_same(workdir, want):
  got = _bytes(workdir)
  for name in ARTIFACTS:
    assert got[name] == want[name], name


@pytest.fixture(scope="module")
def whole(ready, small):
  """What one process on four devices makes, undisturbed."""
  workdir = ready / "whole"
  _assert_well(_Run(ready, workdir, 1, small).ended())
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  assert len(rows) == 3
  start = (pathlib.Path(small) / "model.safetensors").read_bytes()
  assert (workdir / "export/model.safetensors").read_bytes() != start
  return _bytes(workdir)


def test_two_processes_make_the_bytes_of_one(ready, small, whole, tmp_path):
  """One is killed on the way; what goes on is of another number."""
  workdir = tmp_path / "w"
  run = _Run(ready, workdir, 2, small)
  run.signal(
    signal.SIGKILL, 1, lambda: (workdir / "checkpoints" / "3").exists()
  )
  began = time.monotonic()
  (status, stderr), (killed, _) = run.ended(timeout=60)
  assert killed == -signal.SIGKILL
  assert time.monotonic() - began < 30
  assert status == 1
  _assert_one_line(stderr, "process 1 of 2 is gone", "goes on")
  assert not (workdir / "export").exists()
  ended = _Run(ready, workdir, 1, small).ended()
  _assert_well(ended)
  assert "profile: done before" in ended[0][1]
  _assert_same(workdir, whole)


def test_the_service_is_quiet_about_who_has_gone():
  """Whoever started it was killed meanwhile; or another has its port."""
  command = [sys.executable, "-m", "pivotrl_jax.coordinator"]
  pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    with subprocess.Popen([*command, str(port), "1"], cwd=ROOT, **pipes) as run:
      said, _ = run.communicate()
  assert run.returncode == 0 and b"already in use" in said
  with subprocess.Popen([*command, str(port), "1"], cwd=ROOT, **pipes) as run:
    run.stdout.close()
    run.stdin.close()
    complaints = run.stderr.read()
  assert run.returncode == 0 and b"Traceback" not in complaints


def test_a_service_is_started_again_where_its_port_is_taken(monkeypatch):
  with socket.create_server(("", 0)) as taken:
    free = socket.create_server(("", 0))
    ports = [taken.getsockname()[1], free.getsockname()[1]]
    found = [taken.dup(), free]
    monkeypatch.setattr(socket, "create_server", lambda *_: found.pop(0))
    assert hosts._serve() == ports[1]
  service = hosts._STATE.service
  service.communicate()
  assert service.returncode == 0


def test_an_error_of_one_ends_all_with_its_status(ready, small, tmp_path):
  """Also before the others have anything to do with what it found."""
  workdir = tmp_path / "w"
  shutil.copytree(ready / "w", workdir)
  (workdir / "candidates.jsonl").write_text("{}\n")
  (first, line), (second, passed_on) = _Run(ready, workdir, 2, small).ended(60)
  assert first == second == 2
  _assert_one_line(line, "candidates.jsonl")
  _assert_one_line(passed_on, "candidates.jsonl")


@MANY
@pytest.mark.parametrize(
  "changes",
  [
    {"train.watch_prompts": 1},
    {"train.parallel": "pmap"},
    {"train.mesh.fsdp": 2, "train.mesh.tensor": 2},
  ],
)
def test_four_processes(ready, small, tmp_path, changes):
  stages, found = "profile,select,train,evaluate", []
  for count in (1, 4):
    workdir = tmp_path / str(count)
    run = _Run(ready, workdir, count, small, stages, **changes)
    _assert_well(run.ended())
    found.append(_bytes(workdir, ARTIFACTS + EVALS))
  assert found[0] == found[1]


@MANY
def test_another_number_of_devices_and_mesh(ready, small, whole, tmp_path):
  """A run of two processes goes on by one of half the devices."""
  workdir = tmp_path / "w"
  run = _Run(ready, workdir, 2, small)
  run.signal(
    signal.SIGTERM, 0, lambda: (workdir / "checkpoints" / "2").exists()
  )
  assert {status for status, _ in run.ended(timeout=120)} == {143}
  changed = {"train.mesh.fsdp": 1, "train.mesh.tensor": 2}
  ended = _Run(ready, workdir, 1, small, devices=2, **changed).ended()
  _assert_well(ended)
  assert "profile: done before" in ended[0][1]
  want = whole["export/model.safetensors"]
  got = _bytes(workdir)["export/model.safetensors"]
  want, got = map(safetensors.numpy.load, (want, got))
  chex.assert_trees_all_close(got, want, atol=1e-5)


def _so_far(workdir):
  """How far a run has come."""
  lines = [
    name
    for name in ("profiles.jsonl.partial", "profiles.jsonl", "export")
    if (workdir / name).exists()
  ]
  return [*lines, *checkpoints.steps_of(workdir / checkpoints.FOLDER)]


@MANY
def test_random_kills_end_in_the_same_bytes(ready, small, whole, tmp_path):
  """SIGKILL and SIGTERM to any of 1, 2 or 4 processes at seeded times."""
  rng, workdir, sent, runs = random.Random(0), tmp_path / "w", [], 0
  while len(sent) < KILLS:
    count = rng.choice([1, 2, 4])
    number = rng.choice([signal.SIGTERM, signal.SIGKILL])
    index, delay = rng.randrange(count), rng.uniform(0, 30)
    run, began = _Run(ready, workdir, count, small), time.monotonic()
    run.signal(
      number, index, lambda b=began, d=delay: time.monotonic() - b > d
    )
    ended = run.ended(timeout=120)
    if not any(status for status, _ in ended):  # It was not met.
      _assert_same(workdir, whole)
      workdir.rename(tmp_path / str(runs))
      runs += 1
      continue
    sent.append((count, number.name, round(delay, 1), _so_far(workdir)))
    print(len(sent), runs, *sent[-1], flush=True)
    for i, (status, stderr) in enumerate(ended):
      if i == index and number == signal.SIGKILL:
        assert status == -number
      else:  # 2: those who were not killed waited for them in vain.
        assert status in (1, 2, 128 + number), stderr
        _assert_one_line(stderr)
        assert status != 2 or "not all of" in stderr, stderr
  _assert_well(_Run(ready, workdir, 1, small).ended())
  _assert_same(workdir, whole)
