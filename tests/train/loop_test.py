"""Whole training steps through the loop: one device, pmap and sharded agree."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import state as state_lib
import reads


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


@pytest.fixture(scope="module")
def imported(small, tmp_path_factory):
  """A workdir ready for `train`; programs are kept, as in runs of `main`."""
  folder = tmp_path_factory.mktemp("imported")
  jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  path = folder / "w"
  main.run(_silent(small), path, ["import", "candidates"])
  yield path
  jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def at_once(small, imported, tmp_path_factory):
  """The workdir of a run of 4 steps that nothing interrupted."""
  path = tmp_path_factory.mktemp("at_once") / "w"
  with reads.noted() as seen:
    _trained(imported, path, small, steps=4)
    reads.assert_keys_hold(_silent(small), seen)
  return path


def _silent(small, **train):
  """Nothing is watched: it compiles fast."""
  return _config("sft", small, **{"watch_prompts": 0} | train)


def _trained(before, path, small, **train):
  shutil.copytree(before, path)
  main.run(_silent(small, **train), path, ["train"])


def _bytes(path):
  names = ("export/model.safetensors", "export/config.json", "metrics.jsonl")
  return [(path / name).read_bytes() for name in names]


def _steps(path):
  return sorted(int(p.name) for p in (path / "checkpoints").iterdir())


def test_more_steps_go_on_to_the_same_bytes(small, imported, at_once, tmp_path):
  path = tmp_path / "w"
  _trained(imported, path, small, steps=2)
  main.run(
    _silent(small, steps=4, log_every=1, save_every=1),
    path,
    ["train"],
  )
  assert _bytes(path) == _bytes(at_once)
  assert _steps(path) == [3, 4]
  before = {p: p.stat().st_mtime_ns for p in path.rglob("*.safetensors")}
  main.run(_silent(small, steps=4, log_every=9), path, ["train"])
  assert {p: p.stat().st_mtime_ns for p in before} == before
  # Fewer steps than were taken: said, and nothing lost.
  with pytest.raises(errors.InputError, match="train.steps=1: 4 steps were"):
    main.run(_silent(small, steps=1), path, ["train"])
  assert _bytes(path) == _bytes(at_once)
  assert _steps(path) == [3, 4]


def test_other_layouts_go_on(small, imported, at_once, tmp_path):
  path = tmp_path / "w"
  _trained(imported, path, small, steps=1)
  for steps, layout in ((2, "sharded"), (3, "pmap"), (4, "jit")):
    config = _silent(small, steps=steps, parallel=layout)
    main.run(config, path, ["train"])
  one, other = (
    safetensors.numpy.load_file(p / "export" / "model.safetensors")
    for p in (at_once, path)
  )
  for name, value in one.items():
    np.testing.assert_allclose(
      other[name], value, rtol=1e-3, atol=1e-5, err_msg=name
    )


def test_a_fork_goes_on_from_another_run(small, imported, at_once, tmp_path):
  source = tmp_path / "source"
  _trained(imported, source, small, steps=2)
  path = tmp_path / "fork"
  shutil.copytree(imported, path)
  config = _silent(small, steps=4, init=f"{source}/2")
  main.run(config, path, ["train"])
  export, _, metrics = _bytes(at_once)
  assert _bytes(path)[0] == export
  assert _bytes(path)[2].splitlines() == metrics.splitlines()[2:]
  # What becomes of the other run is no matter of this one.
  shutil.rmtree(source)
  main.run(config, path, ["train"])
  config.train.steps = 5
  main.run(config, path, ["train"])
  assert _steps(path)[-1] == 5


def test_a_fork_of_nothing_or_of_another_shape_is_one_line(
  small, imported, tmp_path
):
  path = tmp_path / "w"
  shutil.copytree(imported, path)
  with pytest.raises(errors.InputError, match="train.init=/nowhere"):
    main.run(_silent(small, init="/nowhere"), path, ["train"])
  other = state_lib.create({"kernel": np.ones(3)}, optax.adam(1.0))
  with checkpoints.Checkpoints(tmp_path, keep=1, policy="p") as saved:
    saved.save(1, other)
  config = _silent(small, init=str(tmp_path))
  with pytest.raises(errors.InputError, match="checkpoints/1: .*; expected"):
    main.run(config, path, ["train"])
