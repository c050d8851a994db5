"""Steps and runs that train adapters alone."""

import functools
import json
import shutil

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

import meshes
import random_rows
from configs import swe
from pivotrl_jax import main
from pivotrl_jax.data import batches
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import loop
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

TINY = qwen3.Config(64, 32, 48, 1, 4, 2, 16, tie_word_embeddings=True)
SCALE = 0.5


@pytest.fixture(scope="module")
def base():
  return lora.Base(nn.unbox(qwen3.init_params(TINY, jax.random.key(0))), SCALE)


@pytest.fixture(scope="module")
def adapters(base):
  found = lora.init(
    base.params, rank=4, targets=("q_proj", "down_proj"), seed=0
  )
  # B as after some steps, else A has no gradient.
  return jax.tree.map(lambda x: x + 0.1, found)


@pytest.fixture(scope="module")
def rows():
  return random_rows.drawn(np.random.default_rng(0), 64, (9, 12))


def _step(tx):
  model = qwen3.Qwen3(TINY, attention="dense")
  log_probs = functools.partial(step_lib.policy_log_probs, model, chunk=16)
  loss_fn = functools.partial(
      step_lib.grpo_loss, log_probs_fn=log_probs, clip_low=0.2, clip_high=0.2,
      kl="k3", kl_coef=0.0, loss_norm="token", importance_cap=0.0,
      importance_floor=0.0,
  )  # fmt: skip
  return functools.partial(
    step_lib.train_step, loss_fn=loss_fn, tx=tx,
    keys_fn=functools.partial(step_lib.trie_keys, model),
  )  # fmt: skip


def test_their_gradient_is_that_of_the_matrices_they_add_to(
  base, adapters, rows
):
  """W + s A B: dA = s dW B^T and dB = s A^T dW (arXiv:2106.09685, eq. 3)."""
  step, (batch, _) = _step(optax.sgd(1.0)), batches.pack(rows)
  state = state_lib.create(adapters, optax.sgd(1.0))
  after, metrics, _ = jax.jit(step)(state, batch, base)
  got = jax.tree.map(lambda x, y: x - y, state.params, after.params)
  merged = lora.merge(base, adapters)
  loss_fn = step.keywords["loss_fn"]
  of_all, _, _ = jax.jit(
    functools.partial(step_lib.gradients, loss_fn=loss_fn)
  )(merged, batch)
  for place in (("self_attn", "q_proj"), ("mlp", "down_proj")):
    own, mine, whole = (
      functools.reduce(lambda node, key: node[key], place, tree["layers_0"])
      for tree in (adapters, got, of_all)
    )
    d_kernel = whole["kernel"]
    want = {
      lora.A: SCALE * d_kernel @ own[lora.B].T,
      lora.B: SCALE * own[lora.A].T @ d_kernel,
    }
    chex.assert_trees_all_close(mine, want, atol=2e-6)
  assert metrics["grad_norm"] == pytest.approx(
    float(optax.tree.norm(got)), rel=1e-4
  )


@pytest.mark.parametrize("layout", ["pmap", "sharded in parts"])
def test_however_they_are_spread(base, adapters, rows, layout):
  tx = optax.sgd(0.1)
  step, state = _step(tx), state_lib.create(adapters, tx)
  batch, _ = batches.pack(rows)
  want, metrics, _ = parallel.jitted(step, base)(
    state_lib.create(adapters, tx), batch
  )
  if layout == "pmap":
    batch, _ = batches.pack(rows, multiple_of=8)
    run = parallel.pmapped(step, base)
  else:
    batch, _ = batches.pack(rows, multiple_of=4, branch_tokens=8)
    mesh = parallel.mesh(data=2, tensor=2)
    run, state = parallel.sharded(step, state, TINY, mesh, base)
    q_proj = state.params["layers_0"]["self_attn"]["q_proj"]
    # A is divided as the matrix's input is, B as its output: by 2 each.
    assert meshes.copies(q_proj[lora.A]) == meshes.copies(q_proj[lora.B]) == 4
  got, others, _ = run(state, batch)
  chex.assert_trees_all_close(
    jax.device_get((got.params, others)),
    jax.device_get((want.params, metrics)),
    atol=1e-5,
  )


def _config(model, **train):
  config = swe.get_config("tiny")
  config.method, config.model.path = "sft", model
  config.data.trajectories = 4
  config.train.update(
    {"watch_prompts": 0, "lora_rank": 2, "lora_alpha": 3.0} | train
  )
  return config


def _trained(before, path, *configs):
  shutil.copytree(before, path)
  for config in configs:
    main.run(config, path, ["train"])
  return path


def test_a_run_saves_adapters_and_exports_both_ways(small, programs, tmp_path):
  before = tmp_path / "before"
  main.run(_config(small), before, ["import", "candidates"])
  at_once = _trained(before, tmp_path / "one", _config(small, steps=3))
  twice = _trained(
    before, tmp_path / "two", _config(small, steps=1), _config(small, steps=3)
  )
  names = (
    "export/model.safetensors", "metrics.jsonl",
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
  )  # fmt: skip
  for name in names:
    assert (at_once / name).read_bytes() == (twice / name).read_bytes(), name
  # A checkpoint has no more than the adapters and their moments: of 4
  # matrices A and B, three times.
  saved = json.loads((at_once / "checkpoints/3/_METADATA").read_text())
  paths = list(saved["tree_metadata"])
  assert sum("lora_" in path for path in paths) == 3 * 4 * 2
  assert not any("kernel" in path or "embedding" in path for path in paths)
  # What is exported is the base, and beside it what the adapters add.
  old, new = (
    safetensors.numpy.load_file(f"{place}/model.safetensors")
    for place in (small, at_once / "export")
  )
  adapter = safetensors.numpy.load_file(at_once / names[2])
  for name, array in old.items():
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    want = array
    if f"{stem}.lora_A.weight" in adapter:
      a, b = (adapter[f"{stem}.lora_{x}.weight"] for x in "AB")
      assert abs(b).max() > 0
      want = array + 1.5 * b @ a
    np.testing.assert_allclose(new[name], want, atol=1e-7, err_msg=name)


def test_in_bfloat16_the_base_is_read_in_it_and_adapters_are_not(
  small, tmp_path
):
  config = _config(small)
  config.model.dtype = "bfloat16"
  policy = policy_lib.starting(config, tmp_path)
  state, policy, base = loop.start(config, policy, loop.optimizer(config))
  kinds = {str(x.dtype) for x in jax.tree.leaves(state.params)}
  assert kinds == {"float32"}
  for x in jax.tree.leaves(base.params):
    assert x.dtype == ("bfloat16" if x.ndim > 1 else "float32")
  # Of the starting policy, which is the reference, there is no other copy.
  assert base.params is policy.params
