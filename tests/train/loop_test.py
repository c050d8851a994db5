"""Whole training steps through the loop: one device, pmap and sharded agree."""

import json
import shutil

import numpy as np
import pytest

from configs import swe
from pivotrl_jax import main


def _config(method, model, **train):
  config = swe.get_config("tiny")
  config.method = method
  config.model.path = model
  config.select = "random"
  config.data.trajectories = 4
  config.train.steps = 2
  config.train.update(train)
  return config


def _metrics(before, path, method, model, **train):
  """The rows of metrics.jsonl of a `train` stage on the files in `before`."""
  shutil.copytree(before, path)
  main.run(_config(method, model, **train), path, ["train"])
  rows = (path / "metrics.jsonl").read_text().splitlines()
  return [json.loads(row) for row in rows]


def _assert_close(rows, others):
  assert len(rows) == len(others) == 2
  for one, other in zip(rows, others, strict=True):
    assert one.keys() == other.keys()
    assert one["train/grad_norm"] > 0
    for name in one.keys() - {"rollout/padding"}:
      np.testing.assert_allclose(
        other[name], one[name], rtol=2e-3, atol=2e-5, err_msg=name
      )


def test_sft_however_it_is_spread(small, tmp_path):
  before = tmp_path / "before"
  config = _config("sft", small)
  main.run(config, before, ["import", "candidates"])
  one = _metrics(before, tmp_path / "one", "sft", small)
  for i, train in enumerate(
    ({"parallel": "pmap"}, {"parallel": "sharded"}, {"micro_batches": 2})
  ):
    rows = _metrics(before, tmp_path / str(i), "sft", small, **train)
    _assert_close(one, rows)


def test_grpo_sharded_and_with_more_updates(tmp_path):
  """The mini policy itself: a random one earns nothing to learn from."""
  before = tmp_path / "before"
  stages = ["import", "candidates", "profile", "select"]
  main.run(_config("pivotrl", ""), before, stages)
  one = _metrics(before, tmp_path / "one", "pivotrl", "")
  rows = _metrics(before, tmp_path / "a", "pivotrl", "", parallel="sharded")
  _assert_close(one, rows)
  rows = _metrics(before, tmp_path / "b", "pivotrl", "", updates_per_batch=2)
  assert rows[0]["train/loss"] == pytest.approx(one[0]["train/loss"], abs=1e-6)
  assert rows[0]["heldout/drift"] > one[0]["heldout/drift"]
