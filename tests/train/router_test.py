"""Steps of a mixture of experts: one update however they are computed.

What takes longest to compile runs where $PIVOTRL_MOE is set.
"""

import dataclasses
import functools
import os

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import meshes
import random_rows
from configs import swe
from pivotrl_jax import errors
from pivotrl_jax.data import batches
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import natural
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

TINY = qwen3.Config(
  64, 16, 48, 2, 2, 1, 8, tie_word_embeddings=True, num_experts=4,
  num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
)  # fmt: skip
BALANCE = 0.3
SLOW = pytest.mark.skipif(
  "PIVOTRL_MOE" not in os.environ, reason="set PIVOTRL_MOE=1"
)


def _wide(config):
  boxed = qwen3.init_params(config, jax.random.key(0))
  # Wider than at the start of training, so that no two experts nearly tie.
  return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, nn.unbox(boxed))


@pytest.fixture(scope="module")
def params():
  return _wide(TINY)


@pytest.fixture(scope="module")
def rows():
  """16 rows on 4 prompts, with routes drawn at random."""
  rng = np.random.default_rng(0)
  found = random_rows.drawn(rng, 64, (9, 5, 12, 7))
  return dataclasses.replace(
    found,
    routes=[
      rng.permuted(np.tile(np.arange(4), (len(ids), 2, 1)), axis=-1)[..., :2]
      .astype(np.int16)
      for ids in found.actions
    ],
  )  # fmt: skip


def _model(**options):
  # A body of attention that compiles fast: others have their own laws.
  return qwen3.Qwen3(**{"config": TINY, "attention": "dense"} | options)


def _step(model=None, *, tx=None, **options):
  model = model or _model()
  log_probs = functools.partial(step_lib.policy_log_probs, model, chunk=16)
  loss = functools.partial(
      step_lib.grpo_loss, log_probs_fn=log_probs, clip_low=0.2, clip_high=0.2,
      kl="k3", kl_coef=0.0, loss_norm="token", importance_cap=0.0,
      importance_floor=0.0,
  )  # fmt: skip
  # SGD: Adam would blow rounding of a zero gradient up to a whole step.
  return functools.partial(
    step_lib.train_step, loss_fn=loss, tx=tx or optax.sgd(0.1),
    keys_fn=functools.partial(step_lib.trie_keys, model),
    **{"balance": BALANCE} | options,
  )  # fmt: skip


def _state(params, tx=None):
  return state_lib.create(params, tx or optax.sgd(0.1))


def _result(out):
  state, metrics, _ = out
  return jax.device_get((state.params, metrics))


@pytest.fixture(scope="module")
def reference(params, rows):
  batch, _ = batches.pack(rows, batch_tokens=64)
  return _result(jax.jit(_step())(_state(params), batch))


def test_the_step_is_one_of_routers(reference):
  _, metrics = reference
  assert metrics["router/disagreement"] > 0.1
  assert metrics["router/load_max"] > 1 > metrics["router/load_min"]


@pytest.mark.parametrize(
  "layout",
  [pytest.param({"micro_batches": 3}, marks=SLOW), {"batch_tokens": 16}],
)
def test_accumulated(reference, params, rows, layout):
  batch, _ = batches.pack(rows, **layout)
  assert np.count_nonzero(batch.mask.any((1, 2, 3))) > 1
  # Layers computed again in the backward pass say once what routers did.
  step = _step(_model(remat="batch_tokens" in layout))
  got = _result(jax.jit(step)(_state(params), batch))
  chex.assert_trees_all_close(got, reference, atol=1e-5)


@SLOW
def test_in_parts(reference, params, rows):
  batch, _ = batches.pack(rows, batch_tokens=64, branch_tokens=16)
  assert batch.parts > 1
  got = _result(jax.jit(_step())(_state(params), batch))
  chex.assert_trees_all_close(got, reference, atol=1e-5)


def test_pmap(reference, params, rows):
  batch, _ = batches.pack(rows, multiple_of=8)
  got = _result(parallel.pmapped(_step())(_state(params), batch))
  chex.assert_trees_all_close(got, reference, atol=1e-5)


# The 4 experts of a layer cannot be divided among 8.
@pytest.mark.parametrize(
  "sizes",
  [s for s in meshes.shapes({(1, 2, 2, 2)}) if s.values[0]["expert"] < 8],
)
def test_sharded(reference, params, rows, sizes):
  batch, _ = batches.pack(rows, multiple_of=8)
  mesh = parallel.mesh(**sizes)
  kernels = sizes["expert"] == sizes["tensor"] == 2
  step = _step(_model(attention="pallas" if kernels else "dense"))
  run, state = parallel.sharded(step, _state(params), TINY, mesh)
  kernel = state.params["layers_0"]["mlp"]["experts"]["down_proj"]
  assert meshes.copies(kernel) == sizes["data"]
  chex.assert_trees_all_close(_result(run(state, batch)), reference, atol=1e-5)


# Experts but in the second: with layers in a loop it is that of two layers, the
# others stand alone.
DEEP = dataclasses.replace(TINY, num_hidden_layers=5, mlp_only_layers=(1,))


@pytest.fixture(scope="module")
def deep(rows):
  """Parameters and rows of `DEEP`, and its step of layers one by one."""
  params = _wide(DEEP)
  routes = [np.concatenate([x, x[:, ::-1]], 1) for x in rows.routes]
  rows = dataclasses.replace(rows, routes=routes)
  batch, _ = batches.pack(rows, batch_tokens=64)
  step = _step(_model(config=DEEP))
  return params, rows, _result(jax.jit(step)(_state(params), batch))


@pytest.mark.parametrize(
  ("remat", "layout", "sizes"),
  [
    ("none", {"batch_tokens": 64}, None),
    ("full", {"batch_tokens": 64, "branch_tokens": 16}, None),
    ("full", {"multiple_of": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}),
  ],
)
def test_layers_in_a_loop_are_those_one_by_one(deep, remat, layout, sizes):
  params, rows, want = deep
  batch, _ = batches.pack(rows, **layout)
  step = _step(_model(config=DEEP, remat=remat, scan_layers=True))
  state = _state(params)
  if sizes is None:
    run = jax.jit(step)
  else:
    run, state = parallel.sharded(step, state, DEEP, parallel.mesh(**sizes))
  chex.assert_trees_all_close(_result(run(state, batch)), want, atol=1e-5)


def test_the_load_of_the_whole_batch_balances(reference, params, rows):
  """The gradient is that of the loss and of `moe.balance_loss` beside it."""
  batch, _ = batches.pack(rows, batch_tokens=64)
  micro = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
  loss_fn = _step().keywords["loss_fn"]

  def whole(params):
    loss, (sums, _) = loss_fn(params, micro)
    log_probs_fn = loss_fn.keywords["log_probs_fn"]
    router = log_probs_fn(params, micro)[2]
    return loss / sums["weight"] + BALANCE * moe.balance_loss(router)

  grads = jax.jit(jax.grad(whole))(params)
  want = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
  chex.assert_trees_all_close(reference[0], jax.device_get(want), atol=1e-5)


def test_a_frozen_router_stays_as_it_is_and_so_do_its_moments(params, rows):
  tx = state_lib.optimizer(
    learning_rate=0.1, warmup_steps=0, weight_decay=0.1, clip_norm=1.0
  )
  batch, _ = batches.pack(rows, batch_tokens=64)
  state = _state(params, tx)
  # As a run that was not frozen left them.
  state = state.replace(
    opt_state=jax.tree.map(lambda x: x + 1, state.opt_state)
  )
  step = _step(
    _model(freeze_router=True), tx=state_lib.frozen(tx, moe.is_router)
  )
  after, metrics, _ = jax.jit(step)(state, batch)

  def moved(path, before, after):
    if moe.is_router(path):
      np.testing.assert_array_equal(before, after)
    return float(np.abs(after - before).max())

  changed = jax.tree_util.tree_map_with_path(moved, state, after)
  assert moe.is_router(
    (jax.tree_util.DictKey("mlp"), jax.tree_util.DictKey("gate"),
     jax.tree_util.DictKey("kernel"))
  )  # fmt: skip
  layer = changed.params["layers_0"]["mlp"]
  assert layer["gate"]["kernel"] == 0.0
  assert min(layer["experts"].values()) > 0.0
  assert metrics["grad_norm"] > 0.0


@pytest.fixture(scope="module")
def natural_step():
  return functools.partial(
    natural.train_step, loss_fn=_step().keywords["loss_fn"], model=_model(),
    chunk=16, temperature=1.0, learning_rate=1.0, damping=0.1, iterations=2,
    max_kl=1e-2, tries=1,
  )  # fmt: skip


@SLOW
def test_natural_steps_are_the_same_over_shared_experts(
  natural_step, params, rows
):
  """Forward over reverse mode, through grouped products and their mesh."""
  state = state_lib.create(params, optax.identity())
  batch, _ = batches.pack(rows, multiple_of=8)
  batch = natural.NaturalBatch(batch, batch)
  want, metrics, _ = jax.jit(natural_step)(state, batch)
  assert 0.0 < metrics["natural_kl_measured"] <= 1e-2
  run, laid_out = parallel.sharded(
    natural_step, state, TINY, parallel.mesh(expert=4)
  )
  got, _, _ = run(laid_out, batch)
  chex.assert_trees_all_close(
    jax.device_get(got.params), jax.device_get(want.params), atol=1e-5
  )


def test_devices_that_cannot_be_divided():
  train = swe.get_config("tiny").train
  train.parallel = "sharded"
  parallel.check(train, TINY)
  three = dataclasses.replace(
    TINY, num_attention_heads=6, num_key_value_heads=3
  )
  for axis, size, config, what in (
    ("expert", 8, TINY, "divisor of num_experts 4"),
    ("tensor", 4, TINY, "divisor of num_attention_heads 2"),
    ("tensor", 2, three, "or a multiple of num_key_value_heads 3"),
  ):
    train.mesh.update({"expert": 1, "tensor": 1} | {axis: size})
    with pytest.raises(errors.InputError, match=f"{axis}: {size} .*{what}"):
      parallel.check(train, config)
  train.mesh.tensor = 2  # Two devices share one head of keys and values.
  parallel.check(train, TINY)
  with pytest.raises(errors.InputError, match="expert=3, .*on 8 devices"):
    parallel.mesh(expert=3)
