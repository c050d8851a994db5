"""The short form of the main job against a real SGLang server, on its CPU.

Runs where $PIVOTRL_SGLANG_PYTHON names the interpreter of an environment that
third_party/sglang/make_cpu_env.sh made. Minutes: SGLang takes one to start.
"""

import json
import os
import pathlib
import threading

import pytest

from configs import swe
from launchers import sglang_sidecar
from pivotrl_jax import main
from pivotrl_jax.engines import policy as policy_lib
from tests.engines import conftest

PYTHON = os.environ.get("PIVOTRL_SGLANG_PYTHON")
START = (
  pathlib.Path(__file__).parent.parent.parent
  / "third_party"
  / "sglang"
  / "start_cpu.sh"
)


@pytest.fixture
def address(tmp_path):
  if not PYTHON:
    pytest.skip(
      "no SGLang here: set PIVOTRL_SGLANG_PYTHON to the interpreter of an"
      " environment of third_party/sglang/make_cpu_env.sh"
    )
  port = conftest.free_port()
  sidecar = sglang_sidecar.Sidecar(
      command=[str(START), PYTHON, str(policy_lib.MINI), str(port)],
      address=f"http://127.0.0.1:{port}", log=tmp_path / "sglang.log",
  )  # fmt: skip
  stopping = threading.Event()
  thread = threading.Thread(
    target=sglang_sidecar.serve, args=([sidecar], (), stopping)
  )
  thread.start()
  yield sidecar.address
  stopping.set()
  thread.join()


def test_a_run(address, tmp_path):
  config = swe.get_config("tiny")
  config.select = "random"
  config.data.trajectories = 2
  config.profile.group_size = 2
  config.rollout.pivots_per_step = 2
  config.train.steps = 2
  config.train.watch_prompts = 0
  config.train.natural_every = 0
  config.train.kl_coef = 1e-3  # So that groups that agree are trained on too.
  config.engine.update({"name": "sglang", "urls": address, "patience": 600.0})
  stages = ["import", "candidates", "profile", "select", "train"]
  main.run(config, tmp_path / "run", stages)
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert len(rows) == 2 and rows[0]["rollout/tokens"] > 0
  # Both sides compute in float32.
  assert all(row["mismatch/max"] < 1e-3 for row in rows)
  assert all(row["mismatch/ess"] > 0.999 for row in rows)
