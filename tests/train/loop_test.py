"""Whole training steps through the loop: one device, pmap and sharded agree."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import hf
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.report import glossary
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import loop
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train.methods import pivotrl
import reads


def _config(method, model, **train):
  config = swe.get_config("tiny")
  config.method = method
  config.model.path = model
  config.select = "random"
  config.data.trajectories = 4
  config.train.steps = 2
  config.train.natural_every = 0  # It has tests of its own.
  config.train.update(train)
  return config


def _metrics(before, path, method, model, **train):
  """The rows of metrics.jsonl of a `train` stage on the files in `before`."""
  shutil.copytree(before, path)
  main.run(_config(method, model, **train), path, ["train"])
  rows = (path / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(row) for row in rows]
  for name in rows[0].keys() - {"step"}:
    assert glossary.describe(name)[1], name  # What the report says of it.
  return rows


def _alike(names):
  """Scalars that do not tell how a batch is laid out."""
  layout = ("rollout/padding", "trie/tokens_computed", "trie/gap")
  return [name for name in names if name not in layout]


def _assert_close(rows, others):
  assert len(rows) == len(others) == 2
  for one, other in zip(rows, others, strict=True):
    assert one.keys() == other.keys()
    assert one["train/grad_norm"] > 0
    for name in _alike(one.keys()):
      np.testing.assert_allclose(
        other[name], one[name], rtol=2e-3, atol=2e-5, err_msg=name
      )


def test_sft_however_it_is_spread(small, tmp_path):
  before, silent = tmp_path / "before", {"watch_prompts": 0}
  config = _config("sft", small)
  main.run(config, before, ["import", "candidates"])
  one = _metrics(before, tmp_path / "one", "sft", small, **silent)
  for i, train in enumerate(
    ({"parallel": "pmap"}, {"parallel": "sharded"}, {"micro_batches": 2})
  ):
    rows = _metrics(before, tmp_path / str(i), "sft", small, **silent | train)
    _assert_close(one, rows)


def test_grpo_sharded_and_with_more_updates(tmp_path):
  """The mini policy itself: a random one earns nothing to learn from."""
  before = tmp_path / "before"
  stages = ["import", "candidates", "profile", "select"]
  main.run(_config("pivotrl", ""), before, stages)
  one = _metrics(before, tmp_path / "one", "pivotrl", "", keep_groups=3)
  # Four samples at each of the candidates, then four groups of four a step,
  # three of them kept.
  profiled = 4 * len((before / "profiles.jsonl").read_text().splitlines())
  assert [row["rollout/turns"] for row in one] == [16, 16]
  assert [row["rollout/turns_total"] - profiled for row in one] == [16, 32]
  kept = [
    json.loads(line)
    for line in (tmp_path / "one/rollouts.jsonl").read_text().splitlines()
  ]
  assert [row["step"] for row in kept] == [1] * 12 + [2] * 12
  assert len({row["candidate_id"] for row in kept[:12]}) == 3
  assert [row["sample"] for row in kept] == [0, 1, 2, 3] * 6
  rows = _metrics(
    before, tmp_path / "other", "pivotrl", "", parallel="sharded",
    updates_per_batch=2,
  )  # fmt: skip
  # The mean of both updates, and the last: the first is as it was alone.
  for name in ("train/loss", "train/entropy", "train/grad_norm"):
    first = 2 * rows[0][name] - rows[0][f"{name}_last"]
    assert first == pytest.approx(one[0][name], rel=1e-3, abs=1e-5), name
  assert rows[0]["train/entropy_last"] != one[0]["train/entropy"]
  assert not any(name.endswith("_last") for name in one[0])
  assert rows[0]["heldout/drift"] > one[0]["heldout/drift"]


@pytest.fixture(scope="module")
def imported(small, programs, tmp_path_factory):
  """A workdir ready for `train`."""
  path = tmp_path_factory.mktemp("imported") / "w"
  main.run(_silent(small), path, ["import", "candidates"])
  return path


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


def test_a_reference_is_read_in_the_type_of_activations_or_not_held(
  small, tmp_path
):
  config = _config("pivotrl", small, watch_every=0)
  config.model.dtype = "bfloat16"
  policy = policy_lib.starting(config, tmp_path)
  frozen = policy_lib.frozen(policy, "bfloat16")
  gradient = policy_gradient.PolicyGradient(config, frozen, None, None)
  assert gradient._reference is None
  config.train.kl_coef = 0.1
  gradient = policy_gradient.PolicyGradient(config, frozen, None, None)
  assert gradient._reference["embed_tokens"]["embedding"].dtype == "bfloat16"
  prompts = [np.arange(9), np.arange(3, 20)]
  rows = batches.even_rows(prompts, [np.arange(5), np.arange(4)])
  batch, _ = batches.pack(rows)
  np.testing.assert_array_equal(
    gradient.score(policy.params, batch),
    gradient.score(gradient._reference, batch),
  )


def _group(*samples):
  """A group of (tokens, finish, reward) on one prompt."""
  turn = rollouts.Turn(None, np.arange(5, dtype=np.int32), (), {})
  return rollouts.Group(
    turn,
    tuple(
      base.Completion(np.ones(n, np.int32), np.zeros(n, np.float32), finish)
      for n, finish, _ in samples
    ),
    ("",) * len(samples),
    tuple(types.Verdict(reward, "r") for *_, reward in samples),
  )


def _loss(config, group):
  """(loss, its divisor) of a first update on one group, by `grpo_loss`."""
  rewards = np.array([group.rewards], np.float32)
  samples = pivotrl.samples_of(config, [group], rewards)
  batch, _ = policy_gradient.pack(config, samples, None)
  micro = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
  t = config.train
  _, (sums, _) = step_lib.grpo_loss(
      {}, micro,
      log_probs_fn=lambda _, micro: (*(jnp.zeros(micro.mask.shape),) * 2, {}),
      clip_low=t.clip_low, clip_high=t.clip_high, kl=t.kl, kl_coef=t.kl_coef,
      loss_norm=t.loss_norm, importance_cap=0.0, importance_floor=0.0,
  )  # fmt: skip
  return float(sums["loss"] / sums["weight"]), float(sums["weight"])


@pytest.mark.parametrize(
  ("cut_off", "norm", "loss", "weight"),
  [
    # Rewards 1, 0, 0: mean 1/3, std .471405; A = 1.41421, -.70711, -.70711 on
    # 2, 1 and 3 tokens, the last cut off: -(2.82843 - .70711 - 2.12132) / 6.
    ("fail", "token", 0.0, 6.0),
    # Without it -(2.82843 - .70711) / 3, by the same mean and std.
    ("mask", "token", -0.70711, 3.0),
    # Means over actions: -(1.41421 - .70711 - .70711) / 3, then / 2.
    ("fail", "sequence", 0.0, 3.0),
    ("mask", "sequence", -0.35355, 2.0),
    # Over the 96 tokens of an action: -2.12132 / 96 / 2.
    ("mask", "constant", -2.12132 / 96 / 2, 2.0),
  ],
)
def test_cut_off_actions(cut_off, norm, loss, weight):
  config = swe.get_config("tiny")
  config.rollout.cut_off, config.train.loss_norm = cut_off, norm
  group = _group((2, "stop", 1.0), (1, "stop", 0.0), (3, "length", 0.0))
  assert _loss(config, group) == pytest.approx((loss, weight), abs=1e-5)


def test_what_has_no_verdict_is_in_nothing():
  # Of rewards 1 and 0 the mean is 1/2, the std 1/2: A = 1, -1 on 2 and 1
  # tokens: -(2 - 1) / 3.
  group = _group((2, "stop", 1.0), (1, "stop", 0.0), (3, "stop", None))
  assert _loss(swe.get_config("tiny"), group) == pytest.approx(
    (-1 / 3, 3.0), abs=1e-5
  )


def test_where_all_is_cut_off_a_step_is_zero_and_says_so(
  small, tmp_path, caplog
):
  config = _config("pivotrl", small, steps=1, watch_prompts=0)
  config.rollout.max_tokens, config.rollout.cut_off = 1, "mask"
  config.data.trajectories = config.profile.trajectories = 2
  config.profile.group_size = 2
  stages = ["import", "candidates", "profile", "select", "train"]
  with caplog.at_level("WARNING"):
    main.run(config, tmp_path / "w", stages)
  assert (
    "train: step 1 learns nothing: of 16 samples 16 were cut off and 0 have"
    " no verdict; raise config.rollout.max_tokens"
  ) in caplog.text
  [row] = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
  assert json.loads(row)["train/grad_norm"] == 0.0
  assert json.loads(row)["rollout/cut_off"] == 1.0
  shape = hf.read_config(tmp_path / "w" / "export")
  trained = hf.load_params(tmp_path / "w" / "export", shape)
  jax.tree.map(
    np.testing.assert_array_equal, trained, hf.load_params(small, shape)
  )


def test_a_step_logs_the_mean_of_its_updates_and_the_last():
  updates = [{"clipped": np.float32(0.0)}, {"clipped": np.float32(0.5)}]
  assert policy_gradient.over_updates(updates) == {
    "train/clipped": 0.25, "train/clipped_last": 0.5
  }  # fmt: skip
  assert policy_gradient.over_updates(updates[1:]) == {"train/clipped": 0.5}


class _Kept:
  """Takes what a run saves and writes, in the place of both."""

  def __init__(self):
    self.steps, self.rows = [], []

  def save(self, step, state, *, turns, score):
    assert state == step and turns == 10 + 3 * step
    self.steps.append(step)

  def write(self, step, scalars, rollouts, *, seconds):
    assert scalars["rollout/turns_total"] == 10 + 3 * step
    self.rows.append(step)

  def sync(self):
    pass

  def finish(self):
    pass


@pytest.mark.parametrize(
  ("first", "dies", "saved"),
  # At its 4th step; right after a checkpoint; at the first of a resumed run.
  [(0, 3, [2, 3]), (0, 2, [2]), (3, 3, [])],
)
def test_a_judge_that_is_gone_costs_no_finished_step(first, dies, saved):
  train = swe.get_config("tiny").train
  train.update({"steps": 9, "save_every": 2})

  def advance(state, index):
    if index == dies:
      raise errors.InputError("no verdict")
    return state + 1, {"rollout/turns": 3.0}, []

  kept = _Kept()
  with pytest.raises(errors.InputError, match="no verdict"):
    loop._steps(train, first, first, 10 + 3 * first, advance, kept, kept)
  assert kept.steps == saved
  assert kept.rows == list(range(first + 1, dies + 1))
