"""The short form of the main job against a real SGLang server, on its CPU.

Runs where $PIVOTRL_SGLANG_PYTHON names the interpreter of an environment that
third_party/sglang/make_cpu_env.sh made. Minutes: SGLang takes one to start.
"""

import contextlib
import json
import os
import pathlib
import threading

import pytest

import experts
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


pytestmark = pytest.mark.skipif(
  not PYTHON,
  reason="no SGLang here: set PIVOTRL_SGLANG_PYTHON to the interpreter of an"
  " environment of third_party/sglang/make_cpu_env.sh",
)


@contextlib.contextmanager
def _serving(tmp_path, model, *given):
  port = conftest.free_port()
  sidecar = sglang_sidecar.Sidecar(
      command=[str(START), PYTHON, str(model), str(port), *given],
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


def _metrics(tmp_path, address, **changes):
  """Of two steps of a run whose engine is there."""
  config = swe.get_config("tiny")
  config.select = "random"
  config.data.trajectories = 2
  config.profile.group_size = 2
  config.rollout.pivots_per_step = 2
  config.train.steps = 2
  config.train.watch_prompts = 0
  config.train.natural_every = 0
  config.train.kl_coef = 1e-3  # So that groups that agree are trained on too.
  config.update_from_flattened_dict(changes)
  config.engine.update({"name": "sglang", "urls": address, "patience": 600.0})
  stages = ["import", "candidates", "profile", "select", "train"]
  main.run(config, tmp_path / "run", stages)
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert len(rows) == 2 and rows[0]["rollout/tokens"] > 0
  # Both sides compute in float32.
  assert all(row["mismatch/max"] < 1e-3 for row in rows)
  assert all(row["mismatch/ess"] > 0.999 for row in rows)
  return rows


def test_a_run(tmp_path):
  with _serving(tmp_path, policy_lib.MINI) as address:
    _metrics(tmp_path, address)


def test_its_routes_are_the_trainers_own(tmp_path):
  # SGLang gives every layer of this architecture experts, and ties nothing.
  model = experts.saved(
    tmp_path / "experts", times=6, num_hidden_layers=3, head_dim=32,
    num_experts=8, moe_intermediate_size=32, tie_word_embeddings=False,
  )  # fmt: skip
  flag = "--enable-return-routed-experts"
  with _serving(tmp_path, model, flag) as address:
    changes = {"model.path": str(model), "train.replay_routes": True}
    rows = _metrics(tmp_path, address, **changes)
  for row in rows:
    assert row["router/load_max"] > 1.5
    assert row["router/disagreement"] < 0.01
