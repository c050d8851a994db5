"""A mixture of experts: by hand, against transformers, and over tries."""

import dataclasses
import functools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax.data import batches
from pivotrl_jax.models import hf
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train import trie_log

TESTDATA = pathlib.Path(__file__).parent.parent / "testdata"
TINY = qwen3.Config(
  64, 16, 48, 2, 2, 1, 8, tie_word_embeddings=True, num_experts=4,
  num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
)  # fmt: skip


def _layer(**options):
  knobs = {
    "num_experts": 4, "top_k": 2, "width": 6, "normalized": True,
    "dtype": jnp.float32,
  }  # fmt: skip
  layer = moe.MoE(**knobs | options)
  x = jax.random.normal(jax.random.key(1), (2, 5, 8))
  params = nn.unbox(layer.init(jax.random.key(0), x)["params"])
  return layer, jax.tree.map(lambda p: 20 * p, params), x


def _silu(x):
  return x / (1 + np.exp(-x))


def _naive(params, x, routes=None, *, normalized=True):
  """Token after token, expert after expert."""
  out = np.zeros(x.shape)
  gate = np.asarray(params["gate"]["kernel"], np.float64)
  e = {k: np.asarray(v, np.float64) for k, v in params["experts"].items()}
  for at in np.ndindex(x.shape[:2]):
    scores = x[at] @ gate
    probs = np.exp(scores) / np.exp(scores).sum()
    chosen = np.argsort(-probs)[:2] if routes is None else routes[at]
    total = probs[chosen].sum() if normalized else 1.0
    for i in chosen:
      wide = _silu(x[at] @ e["gate_proj"][i]) * (x[at] @ e["up_proj"][i])
      out[at] += probs[i] / total * (wide @ e["down_proj"][i])
  return out


@pytest.mark.parametrize("normalized", [True, False])
def test_every_token_gets_its_experts(normalized):
  layer, params, x = _layer(normalized=normalized)
  got = layer.apply({"params": params}, x)
  want = _naive(params, np.asarray(x, np.float64), normalized=normalized)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_all_tokens_may_choose_one_expert():
  """No capacity: nothing is dropped where the load could not be worse."""
  layer, params, x = _layer(top_k=1)
  x = jnp.abs(x)
  params["gate"]["kernel"] = jnp.zeros((8, 4)).at[:, 2].set(5.0)
  out, found = layer.apply({"params": params}, x, mutable=[moe.SUMS])
  np.testing.assert_array_equal(
    found[moe.SUMS]["sums"]["chosen"], [0, 0, 10, 0]
  )
  routes = np.full((2, 5, 1), 2)
  want = _naive(params, np.asarray(x, np.float64), routes)
  np.testing.assert_allclose(out, want, atol=1e-4)


def test_given_routes_are_weighed_by_the_routers_own_scores():
  layer, params, x = _layer()
  routes = np.random.default_rng(0).permuted(
    np.tile(np.arange(4), (2, 5, 1)), axis=-1
  )[..., :2]
  # The last token of all has none: its router chooses.
  own = layer.apply({"params": params}, x, mutable=[moe.ROUTES])[1]
  own = own[moe.ROUTES]["routes"]
  given = routes.copy()
  given[1, 4], routes[1, 4] = -1, own[1, 4]
  tokens = moe.Tokens(jnp.ones((2, 5)), jnp.asarray(given))
  out, found = layer.apply({"params": params}, x, tokens, mutable=[moe.SUMS])
  want = _naive(params, np.asarray(x, np.float64), routes)
  np.testing.assert_allclose(out, want, atol=1e-4)
  sums = found[moe.SUMS]["sums"]
  apart = sum(r not in own[at] for at in np.ndindex(2, 5) for r in routes[at])
  assert apart > 0
  assert (sums["given"], sums["disagreed"]) == (18, apart)


def test_some_tokens_after_the_others(monkeypatch):
  """Outputs and gradients are those of all at once."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 7, 4)), jnp.float32)
  weights = jnp.asarray(rng.uniform(size=(2, 7, 2)), jnp.float32)
  routes = jnp.asarray(rng.integers(0, 4, (2, 7, 2)))  # 3: none of these.
  matrices = [
    jnp.asarray(rng.normal(size=size), jnp.float32)
    for size in ((3, 4, 5), (3, 4, 5), (3, 5, 4))
  ]

  def sums(x, weights, matrices):
    found = moe._dispatch(x, routes, weights, matrices, first=0)
    return (found**2).sum(), found

  # 14 tokens have 28 rows: in 3 parts of 5, the last with a token of padding.
  found = []
  for rows in (1 << 17, 10):
    monkeypatch.setattr(moe, "ROWS", rows)
    given = functools.partial(sums)  # A new one is traced anew.
    text = str(jax.make_jaxpr(given)(x, weights, matrices))
    assert ("length=3" in text) == (rows == 10)
    run = jax.jit(jax.value_and_grad(given, (0, 1, 2), has_aux=True))
    found.append(run(x, weights, matrices))
  assert jnp.any(found[0][0][1] == 0)
  chex.assert_trees_all_close(*found, atol=1e-5, rtol=1e-5)


def test_padding_may_hold_nan():
  layer, params, x = _layer()
  weights = jnp.ones((2, 5)).at[0, 3:].set(0.0)

  def run(x):
    def loss(params):
      out, found = layer.apply(
        {"params": params}, x, moe.Tokens(weights), mutable=[moe.SUMS]
      )
      return out.sum(), (out, found[moe.SUMS])

    return jax.value_and_grad(loss, has_aux=True)(params)

  (_, (out, sums)), grads = run(jnp.where(weights[..., None] > 0, x, 0.0))
  padded = jnp.where(weights[..., None] > 0, x, jnp.nan)
  (_, (out_padded, sums_padded)), _ = run(padded)
  np.testing.assert_array_equal(out[0, 3:], 0.0)
  chex.assert_trees_all_equal((out, sums), (out_padded, sums_padded))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_sums_and_statistics():
  # One layer, E = 3, k = 2, two tokens that count 1 and 2.
  probs = jnp.array([[[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]])
  routes = jnp.array([[[0, 1], [2, 0]]])
  own = jnp.array([[[0, 1], [2, 1]]])  # The second's 0 was given.
  tokens = moe.Tokens(jnp.array([[1.0, 2.0]]), jnp.array([[[-1, -1], [2, 0]]]))
  sums = jax.tree.map(lambda x: x[None], moe._sums(probs, routes, own, tokens))
  # Expert 0: 1 + 2; 1: 1; 2: 2. Probabilities: .5 + .4, .3 + .4, .2 + 1.2.
  np.testing.assert_allclose(sums["chosen"], [[3, 1, 2]])
  np.testing.assert_allclose(sums["probs"], [[0.9, 0.7, 1.4]], rtol=1e-6)
  found = moe.statistics(sums)
  # 3 (3/3 x .9/3 + 1/3 x .7/3 + 2/3 x 1.4/3) = .9 + .7/3 + 2.8/3.
  np.testing.assert_allclose(found["router/balance"], 2.0666667, rtol=1e-6)
  # An even load is 2; given were 2 x 2 places, of which 2 x 1 are not own.
  np.testing.assert_allclose(found["router/load_max"], 1.5)
  np.testing.assert_allclose(found["router/load_min"], 0.5)
  np.testing.assert_allclose(found["router/disagreement"], 0.5)
  # (1.0297 + 2 x 0.9503) / 3.
  np.testing.assert_allclose(found["router/entropy"], 0.97674, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe_raw"])
def test_load_balance_is_transformers(name):
  path = TESTDATA / name
  config, golden = hf.read_config(path), np.load(path / "golden.npz")
  params = hf.load_params(
    path, config, put=lambda _, x: jnp.asarray(x, jnp.float32)
  )
  shape = qwen3.config_from_hf(config)
  ids = jnp.asarray(golden["ids"])
  nothing, size = jnp.zeros_like(ids), ids.shape[1]
  layout = qwen3.Layout(
    ends=nothing[:, :1],
    depths=nothing[:, :1],
    past=nothing - 1,
    branch_ends=nothing + size,
    branch_depths=nothing + jnp.arange(size),
  )

  def loss(params):
    _, found = qwen3.Qwen3(shape, attention="dense").apply(
      {"params": params}, ids[:, :1], ids, layout, reach=size - 1,
      tokens=(moe.Tokens(jnp.zeros((2, 1))), moe.Tokens(jnp.ones(ids.shape))),
      mutable=[moe.SUMS],
    )  # fmt: skip
    sums = moe.stacked(found[moe.SUMS], shape.sparse_layers, "sums")
    return moe.balance_loss(sums)

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, golden["balance"], atol=1e-5)
  for key, keys, transposed, _ in hf.name_map(config):
    got = hf.at(grads, keys)
    np.testing.assert_allclose(
      got.T if transposed else got,
      golden[f"balance_grad/{key}"],
      atol=1e-5,
      err_msg=key,
    )


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  trunk = rng.integers(0, 64, 13).astype(np.int32)
  other = rng.integers(0, 64, 4).astype(np.int32)
  lengths = rng.integers(1, 6, 8)
  return batches.Rows(
    # Nested prefixes of one trajectory, one prompt twice, one apart.
    prompts=[trunk[:n] for n in (13, 13, 9, 5, 11, 1)] + [other, other],
    actions=[rng.integers(0, 64, n).astype(np.int32) for n in lengths],
    weights=[np.ones(n, np.float32) for n in lengths],
    advantages=rng.normal(size=8).astype(np.float32),
    sampler_log_probs=[np.full(n, np.nan, np.float32) for n in lengths],
  )


def _sums(params, rows, shape=None, count="rows"):
  """Sum of weighted log-probs, its gradient, log-probs by row, router sums."""
  batch, places = batches.pack(rows, shape)

  def loss(params, micro):
    log_probs, _, router = step_lib.policy_log_probs(
      qwen3.Qwen3(TINY, attention="dense"), params, micro, chunk=16,
      count=count,
    )  # fmt: skip
    masked = jnp.where(micro.mask > 0, log_probs, 0.0)
    return (masked * micro.advantages[..., None]).sum(), (
      masked.sum(-1), router,
    )  # fmt: skip

  def one(micro):
    found, grads = jax.value_and_grad(loss, has_aux=True)(params, micro)
    return (found[0], grads, found[1][1]), found[1][0]

  total, kept = jax.jit(functools.partial(step_lib.over_micro_batches, one))(
    batch
  )
  return *total, np.asarray(kept).reshape(-1)[places]


@pytest.fixture(scope="module")
def params():
  boxed = qwen3.init_params(TINY, jax.random.key(0))
  return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, nn.unbox(boxed))


@pytest.fixture(scope="module")
def in_a_trie(params, rows):
  return _sums(params, rows)


def test_a_trie_is_its_sequences(params, rows, in_a_trie):
  separate, shape = trie_log._separate(rows, len(rows.prompts))
  # Only actions count, which end where the sequences do.
  ends = [len(a) for a in rows.actions]
  weights = [
    (np.arange(len(w)) >= len(w) - n).astype(np.float32)
    for w, n in zip(separate.weights, ends, strict=True)
  ]
  separate = dataclasses.replace(
    separate, weights=weights, advantages=rows.advantages
  )
  got = _sums(params, separate, shape)
  chex.assert_trees_all_close(got[:2], in_a_trie[:2], atol=1e-4)
  np.testing.assert_allclose(got[3], in_a_trie[3], atol=1e-4)
  # The last layer of prompts is computed in the sequences alone.
  first = [jax.tree.map(lambda x: x[0], x[2]) for x in (got, in_a_trie)]
  chex.assert_trees_all_close(*first, atol=1e-4)


def test_order_and_packing_change_nothing(params, rows, in_a_trie):
  order = np.random.default_rng(1).permutation(8)
  moved = batches.Rows(
    *(
      [getattr(rows, name)[i] for i in order]
      for name in ("prompts", "actions", "weights")
    ),
    advantages=rows.advantages[order],
    sampler_log_probs=[rows.sampler_log_probs[i] for i in order],
  )
  lengths = np.array([len(a) for a in moved.actions])
  shape = batches.plan(
    [(moved.prompts, lengths)], longest=13, width=int(lengths.max()),
    batch_tokens=16, micro_batches=2, multiple_of=2,
  )  # fmt: skip
  got = _sums(params, moved, shape)
  chex.assert_trees_all_close(got[:3], in_a_trie[:3], atol=1e-4)
  np.testing.assert_allclose(got[3], in_a_trie[3][order], atol=1e-4)


@pytest.mark.parametrize("count", step_lib.COUNTS)
def test_tokens_count_as_often_as_rows_have_them_or_once(rows, count):
  batch, _ = batches.pack(rows, batch_tokens=64)
  micro = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
  assert batch.mask[1:].sum() == 0
  inputs, _, layout = step_lib.branch_inputs(micro)
  trie, branch = step_lib.router_tokens(micro, inputs, layout, count=count)
  of_actions = sum(len(a) - 1 for a in rows.actions)
  if count == "rows":
    want = sum(len(p) for p in rows.prompts)
  else:
    want = len({
      p[: i + 1].tobytes() for p in rows.prompts for i in range(len(p))
    })  # fmt: skip
    # A prompt that ends where another goes on: its last token is a node of the
    # trie, and computed once more among the branches.
    ends = {p.tobytes() for p in rows.prompts}
    longer = {p[:i].tobytes() for p in rows.prompts for i in range(len(p))}
    want += len(ends & longer)
  found = float(trie.weights.sum() + branch.weights.sum())
  np.testing.assert_allclose(found, want + of_actions, rtol=1e-6)
