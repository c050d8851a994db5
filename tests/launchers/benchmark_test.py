"""A row of the benchmark: what it writes, and that nothing is computed twice."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from launchers import sharing
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import importers
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy

LAUNCHER = (
  pathlib.Path(__file__).parent.parent.parent / "launchers" / "benchmark.py"
)


@pytest.mark.parametrize(
  "work, figure",
  [("grpo_step", "seconds_per_step"), ("profile", "candidates_per_second")],
)
def test_a_row(tmp_path, work, figure):
  out = tmp_path / "row.json"
  subprocess.run(
      [
          sys.executable, str(LAUNCHER), f"--work={work}", "--shape=2,4,256,16",
          f"--json={out}", "--steps=1",
      ],
      check=True, capture_output=True,
  )  # fmt: skip
  row = json.loads(out.read_text())
  assert row["shape"] == [2, 4, 256, 16]
  assert row[figure] > 0 and row["peak_gib"] > 0
  assert row["recompilations"] == 0
  # 256 tokens and 4 actions of 16 a pivot, prefilled and decoded, then
  # trained on: 2 * 2 * (256 + 4 * 16) = 1,280; both turns of the profile lie
  # on one trunk: 256 + 2 * 4 * 16 = 384.
  least = {"grpo_step": 1280, "profile": 384}[work]
  assert row["tokens_least"] == least
  # Prompts are prefilled in chunks of 128 tokens at least: one of padding.
  assert least <= row["tokens_computed"] <= least + 128


def test_a_row_beside_its_peers(tmp_path):
  out = tmp_path / "row.json"
  subprocess.run(
      [
          sys.executable, str(LAUNCHER), "--work=loss", "--shape=1,4,28,4",
          f"--json={out}", "--steps=1", "--repeats=1", "--peers=separate",
      ],
      check=True, capture_output=True,
  )  # fmt: skip
  row = json.loads(out.read_text())
  # 4 * (28 + 4) tokens apart, 28 + 4 * 4 at least.
  assert row["rho"] == 128 / 44
  assert row["seconds"] > 0 and row["peak_gib"] > 0
  [(name, peer)] = row["peers"].items()
  assert name == "separate" and peer["peak_gib"] > 0
  assert peer["speed_up"] == peer["seconds"] / row["seconds"]
  assert peer["speed_up_over_rho"] == peer["speed_up"] / row["rho"]


def test_a_peer_that_does_no_such_work_is_refused():
  done = subprocess.run(
    [sys.executable, str(LAUNCHER), "--work=profile", "--peers=trl"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and not done.stdout.count("seconds")
  assert "it does no profile; expected some of hf, separate" in done.stderr


def _chat(*turns):
  """A row with an assistant's turn after each of the user's."""
  messages = [{"role": "system", "content": "Answer in one word. " * 9}]
  for said in turns:
    messages += [
      {"role": "user", "content": said},
      {"role": "assistant", "content": "Yes."},
    ]
  return {"messages": messages}


def test_what_data_share(tmp_path):
  path = tmp_path / "rows.jsonl"
  rows = [_chat("a", "b"), _chat("a", "c"), _chat("d"), {"messages": []}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = sharing.sharing(path, trajectories=0, most=1000)
  tokenizer = tokenizer_lib.load(policy.MINI)
  prompts = [
    render.prompt_ids(tokenizer, t.messages[:i], ())
    for t in importers.import_path(path)
    if not isinstance(t, importers.Skip)
    for i in range(2, len(t.messages), 2)
  ]
  nodes = {tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)}
  assert found["trajectories"] == 3 and found["prompts"] == len(prompts) == 5
  assert found["tokens_separate"] == sum(map(len, prompts))
  assert found["tokens_least"] == len(nodes)
  # The same prompt twice is one, and begins two others.
  assert found["tokens_trunks"] == sum(len(prompts[i]) for i in (1, 3, 4))
  # Nothing but what the engine of a profile computes.
  loaded = policy.load(policy.MINI)
  engine = jax_sampler.JaxSampler(loaded.config)
  engine.load(jax.device_put(loaded.params), "")
  one = base.SamplingParams(1, ())
  engine.sample([np.asarray(p) for p in prompts], one, range(5))
  assert found["tokens_computed"] == engine.stats.prefilled_tokens + 5
