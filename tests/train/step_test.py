"""One device, accumulated, pmap and sharded give one step."""

import collections
import functools

import chex
import flax.linen as nn
import jax
from jax.extend import core as extend
import numpy as np
import optax
import pytest

import meshes
import random_rows
from pivotrl_jax.data import batches
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

TINY = qwen3.Config(64, 32, 48, 2, 4, 2, 16, tie_word_embeddings=True)


def _rows(advantages):
  rng = np.random.default_rng(0)
  return random_rows.drawn(rng, 64, (9, 5, 12, 7), advantages)


def _setup(attention="auto", dtype="float32", **options):
  # SGD: Adam would blow rounding of a zero gradient up to a whole step.
  tx = optax.sgd(0.1)
  params = nn.unbox(qwen3.init_params(TINY, jax.random.key(0)))
  model = qwen3.Qwen3(TINY, attention=attention, dtype=np.dtype(dtype))
  log_probs = functools.partial(step_lib.policy_log_probs, model, chunk=16)
  knobs = dict(
      log_probs_fn=log_probs, clip_low=0.2, clip_high=0.2, kl="k3",
      kl_coef=0.0, loss_norm="token", importance_cap=0.0, importance_floor=0.0,
  ) | options  # fmt: skip
  step = functools.partial(
    step_lib.train_step,
    loss_fn=functools.partial(step_lib.grpo_loss, **knobs),
    tx=tx,
    keys_fn=functools.partial(step_lib.trie_keys, model),
  )
  return state_lib.create(params, tx), step


ADVANTAGES = np.random.default_rng(1).normal(size=16).astype(np.float32)


def _result(out):
  state, metrics, _ = out
  return jax.device_get((state.params, metrics))


def _reference():
  state, step = _setup()
  batch, _ = batches.pack(_rows(ADVANTAGES), batch_tokens=64)
  assert _used(batch) == 1
  return _result(jax.jit(step)(state, batch))


def _used(batch):
  return np.count_nonzero(batch.mask.any((1, 2, 3)))


@pytest.fixture(scope="module")
def reference():
  return _reference()


@pytest.mark.parametrize("layout", [{"micro_batches": 3}, {"batch_tokens": 16}])
def test_accumulated(reference, layout):
  state, step = _setup()
  batch, _ = batches.pack(_rows(ADVANTAGES), **layout)
  assert 1 < _used(batch) <= len(batch.tries)
  got = _result(jax.jit(step)(state, batch))
  chex.assert_trees_all_close(got, reference, atol=1e-6)


@pytest.mark.parametrize("attention", ["auto", "pallas"])
def test_pmap(reference, attention):
  assert jax.device_count() == 8
  state, step = _setup(attention)
  batch, places = batches.pack(_rows(ADVANTAGES), multiple_of=8)
  out = parallel.pmapped(step)(state, batch)
  chex.assert_trees_all_close(_result(out), reference, atol=1e-6)
  # Rows come back where they were sent.
  alone = jax.jit(step)(state, batch)[2]["log_prob"]
  np.testing.assert_allclose(
    out[2]["log_prob"].reshape(-1)[places],
    alone.reshape(-1)[places],
    atol=1e-5,
  )


@pytest.mark.parametrize("sizes", meshes.shapes({(1, 8, 1, 1)}))
def test_sharded(reference, sizes):
  _sharded(reference, sizes, "dense")


def test_sharded_by_kernels(reference):
  _sharded(reference, {"data": 2, "fsdp": 2, "tensor": 2}, "pallas")


def test_sharded_by_loops_in_parts(reference):
  sizes = {"data": 1, "fsdp": 4, "tensor": 2}
  _sharded(reference, sizes, "auto", branch_tokens=8)


def _sharded(reference, sizes, attention, **layout):
  state, step = _setup(attention)
  batch, _ = batches.pack(_rows(ADVANTAGES), multiple_of=8, **layout)
  run, state = parallel.sharded(step, state, TINY, parallel.mesh(**sizes))
  kernel = state.params["layers_0"]["mlp"]["up_proj"]["kernel"]
  assert meshes.copies(kernel) == sizes["data"]
  chex.assert_trees_all_close(_result(run(state, batch)), reference, atol=1e-6)


def test_moments_are_divided_as_their_parameters_are():
  tx = state_lib.optimizer(
    learning_rate=0.1, warmup_steps=2, weight_decay=0.0, clip_norm=1.0
  )
  state = state_lib.create(_setup()[0].params, tx)
  mesh = parallel.mesh(data=2, tensor=2)
  state = jax.device_put(state, parallel.state_sharding(state, TINY, mesh))
  adam = state.opt_state[1][0]
  for params in (state.params, adam.mu, adam.nu):
    for path, array in jax.tree_util.tree_leaves_with_path(params):
      # Of 8 devices 2 are for data. Norms have no axis that "tensor" divides,
      # and those of heads none that "fsdp" does either.
      name = jax.tree_util.keystr(path)
      norm = 8 if "q_norm" in name or "k_norm" in name else 4
      assert meshes.copies(array) == (2 if array.ndim == 2 else norm), name


@pytest.mark.parametrize("layout", [{}, {"branch_tokens": 8}])
def test_in_bfloat16_products_are_but_masters_and_sums_are_not(layout):
  state, step = _setup("xla", dtype="bfloat16")
  batch, _ = batches.pack(_rows(ADVANTAGES), batch_tokens=64, **layout)
  jaxpr, (after, _, _) = jax.make_jaxpr(step, return_shape=True)(state, batch)
  kinds = collections.Counter(
    tuple(sorted(x.aval.dtype.name for x in eqn.invars))
    for eqn in _equations(jaxpr.jaxpr)
    if eqn.primitive.name == "dot_general" and _of_matrices(eqn)
  )
  assert kinds.pop(("bfloat16", "bfloat16")) > 50
  # The gradient of logits, which are float32, times what they are made of.
  assert kinds == {("bfloat16", "float32"): 2}
  # Where parts of a gradient are added up, and what they become.
  for eqn in _equations(jaxpr.jaxpr):
    if eqn.primitive.name in ("while", "scan") and len(eqn.outvars) > 9:
      carried = {x.aval.dtype.name for x in eqn.outvars}
      assert "bfloat16" not in carried
  assert {x.dtype.name for x in jax.tree.leaves(after.params)} == {"float32"}


def _of_matrices(eqn):
  """Not so the products with ones that are sums on CPU (`models/sums.py`)."""
  contracted, batched = eqn.params["dimension_numbers"]
  sizes = []
  for x, inner, outer in zip(eqn.invars, contracted, batched, strict=True):
    shape = np.array(x.aval.shape)
    inner, outer = (int(shape[list(of)].prod()) for of in (inner, outer))
    sizes += [inner, shape.prod() // (inner * outer)]
  return min(sizes) > 1


def _equations(jaxpr):
  """Those of a jaxpr and of all within it."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in extend.jaxprs_in_params(eqn.params):
      yield from _equations(inner)


@pytest.mark.parametrize("attention", ["dense", "pallas"])
def test_whatever_computes_attention(reference, attention):
  state, step = _setup(attention)
  batch, _ = batches.pack(_rows(ADVANTAGES))
  chex.assert_trees_all_close(
    _result(jax.jit(step)(state, batch)), reference, atol=1e-6
  )


def test_zero_advantages_move_nothing():
  state, step = _setup()
  batch, _ = batches.pack(_rows(np.zeros(16, np.float32)))
  after, metrics, _ = jax.jit(step)(state, batch)
  chex.assert_trees_all_equal(after.params, state.params)
  assert float(metrics["grad_norm"]) == 0.0


def test_the_reference_itself_has_no_kl():
  state, step = _setup(kl_coef=1.0)
  batch, _ = batches.pack(_rows(np.zeros(16, np.float32)))
  log_probs_fn = functools.partial(
    step_lib.policy_log_probs, qwen3.Qwen3(TINY), chunk=16
  )
  score = jax.jit(functools.partial(step_lib.score, log_probs_fn))
  log_probs = score(state.params, batch)
  batch = batch.replace(ref_log_probs=log_probs)
  _, metrics, _ = jax.jit(step)(state, batch)
  assert abs(float(metrics["kl"])) < 1e-6
  assert float(metrics["grad_norm"]) < 1e-4


def test_metrics_are_means_over_tokens():
  state, step = _setup()
  batch, _ = batches.pack(_rows(np.ones(16, np.float32)))
  _, metrics, _ = jax.jit(step)(state, batch)
  # Ratio 1, advantage 1 on every token: the mean loss is -1.
  np.testing.assert_allclose(metrics["loss"], -1.0, rtol=1e-6)
