"""A tiny random mixture of experts through the whole main job.

Minutes long, so only where $PIVOTRL_MOE is set; with $PIVOTRL_TORCH_PYTHON, a
Python with torch and transformers, the export is run by these too.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import experts
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy as policy_lib

ROOT = pathlib.Path(__file__).parent.parent
OVERRIDES = {
  # A random policy never succeeds: what moves it is the load-balance loss, and
  # rows without advantage are trained on for the KL's sake.
  "select": "random", "train.kl_coef": 0.01, "train.router_aux_loss_coef": 0.1,
  "train.replay_routes": True, "warm_start.steps": 2,
  "warm_start.trajectories": 2, "sft.turns": 8, "train.natural_every": 0,
  "evaluation.tasks": 2, "evaluation.questions": 2, "evaluation.max_turns": 2,
}  # fmt: skip
GREEDY = """
import json, sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(
  sys.argv[1], dtype=torch.float32)
for ids in json.load(sys.stdin):
  out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False,
                       eos_token_id=None, pad_token_id=0)
  print(json.dumps(out[0, len(ids):].tolist()))
"""

pytestmark = pytest.mark.skipif(
  "PIVOTRL_MOE" not in os.environ, reason="set PIVOTRL_MOE=1"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return experts.saved(tmp_path_factory.mktemp("moe") / "model")


@pytest.fixture(scope="module")
def workdir(checkpoint, tmp_path_factory):
  path = tmp_path_factory.mktemp("job")
  overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
  done = subprocess.run(
    [sys.executable, "-m", "pivotrl_jax.main", "--config=configs/swe.py:tiny",
     f"--workdir={path}", f"--config.model.path={checkpoint}", *overrides],
    cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return path


def test_it_is_profiled_trained_and_exported(checkpoint, workdir):
  rows = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert len(rows) == 3
  for row in rows:
    # Of routes that rounding alone decides there are few.
    assert row["router/disagreement"] < 0.02
    assert row["router/load_max"] > 1 > row["router/load_min"]
    assert 0 < row["router/entropy"] <= np.log(4) + 1e-6
  assert rows[0]["train/update_norm"] > 0
  assert (workdir / "report" / "report.md").exists()
  before, after = (
    policy_lib.load(place).params
    for place in (workdir / policy_lib.WARM_START, workdir / "export")
  )
  gates = [p["layers_0"]["mlp"]["gate"]["kernel"] for p in (before, after)]
  assert np.abs(gates[0] - gates[1]).max() > 0


@pytest.mark.skipif(
  "PIVOTRL_TORCH_PYTHON" not in os.environ, reason="set PIVOTRL_TORCH_PYTHON"
)
def test_transformers_continues_alike(workdir):
  loaded = policy_lib.load(workdir / "export")
  engine = jax_sampler.JaxSampler(loaded.config)
  engine.load(loaded.params, "")
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 512, n).astype(np.int32) for n in (5, 17, 60)]
  sampling = base.SamplingParams(max_tokens=24, stop_ids=(), temperature=0.0)
  got = [c.ids.tolist() for c in engine.sample(prompts, sampling, [0, 0, 0])]
  done = subprocess.run(
    [os.environ["PIVOTRL_TORCH_PYTHON"], "-c", GREEDY, workdir / "export"],
    input=json.dumps([p.tolist() for p in prompts]),
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert got == [json.loads(line) for line in done.stdout.splitlines()]
