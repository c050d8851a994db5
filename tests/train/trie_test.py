"""Laws of tries: what is shared is what separate sequences compute."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import swe
from pivotrl_jax.data import batches
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train import trie_log

TINY = qwen3.Config(64, 32, 48, 2, 4, 2, 16, tie_word_embeddings=True)


def _rows(seed, longest):
  """Actions on the nodes of a random trie, up to six branchings deep."""
  rng = np.random.default_rng(seed)
  prompts = []

  def grow(path, depth):
    path = np.append(path, rng.integers(0, 64, rng.integers(1, longest)))
    if depth == 6 or rng.random() < 0.4:
      prompts.append(path.astype(np.int32))
    if depth < 6:
      for _ in range(rng.choice([1, 1, 2, 3] if depth < 3 else [1, 1, 1, 2])):
        grow(path, depth + 1)

  grow(np.zeros(0), 1)
  prompts += [prompts[0], np.array([7], np.int32)]  # Twice; no trie at all.
  lengths = rng.integers(1, 7, len(prompts))
  return batches.Rows(
    prompts=prompts,
    actions=[rng.integers(0, 64, n).astype(np.int32) for n in lengths],
    weights=[rng.uniform(0.5, 1.5, n).astype(np.float32) for n in lengths],
    advantages=rng.normal(size=len(prompts)).astype(np.float32),
    sampler_log_probs=[np.full(n, -4.0, np.float32) for n in lengths],
  )


def _separate(rows):
  """The same as sequences: what was shared is part of each one's action."""

  def behind(parts):
    return [
      np.append(np.zeros(len(p) - 1, np.float32), x)
      for p, x in zip(rows.prompts, parts, strict=True)
    ]

  whole = [np.append(*x) for x in zip(rows.prompts, rows.actions, strict=True)]
  return batches.Rows(
    prompts=[ids[:1] for ids in whole],
    actions=[ids[1:] for ids in whole],
    weights=behind(rows.weights),
    advantages=rows.advantages,
    sampler_log_probs=behind(rows.sampler_log_probs),
  )


def _params():
  boxed = qwen3.init_params(TINY, jax.random.key(0))
  return nn.unbox(boxed)


def _step(dtype="float32", attention="auto", loss_norm="token", remat="none"):
  model = qwen3.Qwen3(
    TINY, dtype=jnp.dtype(dtype), attention=attention, remat=remat
  )
  loss_fn = functools.partial(
    step_lib.grpo_loss,
    log_probs_fn=functools.partial(
      step_lib.policy_log_probs, model, chunk=64
    ),
    clip_low=0.2, clip_high=0.2, kl="k3", kl_coef=0.0, loss_norm=loss_norm,
    importance_cap=0.0, importance_floor=0.0,
  )  # fmt: skip
  return jax.jit(functools.partial(
      step_lib.gradients, loss_fn=loss_fn,
      keys_fn=functools.partial(step_lib.trie_keys, model),
  ))  # fmt: skip


def _by_row(found, places):
  """A step's log-probs, in the order of its rows."""
  return np.asarray(found["log_prob"]).reshape(-1)[places]


@pytest.mark.parametrize(
  ("dtype", "longest", "atol", "share"),
  # Sums of up to six log-probs of size 5: 8 bits round each by 0.02.
  [
    ("float32", 5, 1e-5, 1e-5),
    ("float32", 12, 1e-5, 1e-5),
    ("bfloat16", 12, 0.2, 0.1),
  ],
)
def test_twenty_steps_are_those_of_separate_sequences(
  dtype, longest, atol, share
):
  rows = _rows(longest, longest)
  assert trees.order(rows.prompts).tokens() < sum(map(len, rows.prompts)) / 2
  params, gradients = _params(), _step(dtype)
  packed = [batches.pack(rows), batches.pack(_separate(rows))]
  # From the same parameters at each step: training blows rounding up.
  for _ in range(20):
    grads, by_row = [], []
    for batch, places in packed:
      found, _, of_rows = gradients(params, batch)
      grads.append(found)
      by_row.append(_by_row(of_rows, places))
    np.testing.assert_allclose(*by_row, atol=atol, rtol=1e-5)
    apart = optax.tree.norm(optax.tree.sub(*grads))
    assert apart < share * optax.tree.norm(grads[1])
    params = jax.tree.map(lambda p, g: p - 0.03 * g, params, grads[0])


def test_order_packing_cut_and_body_change_nothing():
  rows = _rows(3, 12)
  count = len(rows.prompts)
  want = None
  order = np.random.default_rng(0).permutation(count)
  moved = batches.Rows(
    **{
      f.name: [getattr(rows, f.name)[i] for i in order]
      for f in dataclasses.fields(rows)
      if f.name != "routes"
    }
  )
  longest = max(map(len, rows.prompts))
  for given, layout, body in (
    (rows, {}, "dense"),
    (rows, {}, "xla"),
    (rows, {}, "pallas"),
    (moved, {"micro_batches": 3}, "xla"),
    # Lines of the longest prompt, and two side by side: cut wherever.
    (moved, {"batch_tokens": longest, "multiple_of": 2}, "xla"),
  ):
    batch, places = batches.pack(given, **layout)
    grads, _, found = _step(attention=body)(_params(), batch)
    by_row = _by_row(found, places)
    by_row = by_row[np.argsort(order)] if given is moved else by_row
    got = (jax.device_get(grads), by_row)
    want = want or got
    chex.assert_trees_all_close(got, want, atol=1e-5, rtol=1e-5)
    if "multiple_of" in layout:
      lines = (batch.ends > 0).sum()
      assert lines > trees.order(rows.prompts).tokens()  # It was cut.


def test_branches_in_parts_give_the_gradient_of_all_at_once():
  """Tries are computed once, whatever their branches are divided into."""
  rows = _rows(3, 12)
  whole, places = batches.pack(rows, batch_tokens=512)
  want, metrics, found = _step()(_params(), whole)
  by_row = _by_row(found, places)
  for most, remat, layout in (
    (48, "none", {"batch_tokens": 512}),
    (16, "dots", {"batch_tokens": 128, "multiple_of": 2}),
  ):
    batch, places = batches.pack(rows, branch_tokens=most, **layout)
    assert batch.parts > 1
    got, others, found = _step(remat=remat)(_params(), batch)
    np.testing.assert_allclose(_by_row(found, places), by_row, atol=1e-5)
    chex.assert_trees_all_close((got, others), (want, metrics), atol=1e-5)


def test_tokens_of_parts():
  # 4 actions of 3 tokens on 33 prompt tokens, of which the last is none of the
  # trie's; a part of 16 tokens has room for 2 branches.
  rows = batches.even_rows([np.arange(33)] * 4, [np.arange(3)] * 4)
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trie=32, branch=48, branches=6,
      width=3, parts=3,
  )  # fmt: skip
  batch, places = batches.pack(rows, shape)
  assert places.tolist() == [0, 1, 2, 3]
  # The third part is empty: no step computes it.
  assert batches.computed_tokens(batch) == 32 + 2 * 16
  # The second begins where the first's room ends.
  assert batch.places[0, 0].tolist() == [
      *range(6), *[18] * 10, *range(6, 12), *[18] * 10, *[18] * 16,
  ]  # fmt: skip
  # Cut into micro-batches for the same room, the trie is computed twice.
  shape = dataclasses.replace(shape, parts=1, branch=16, branches=2)
  cut, _ = batches.pack(rows, shape)
  assert batches.computed_tokens(cut) == 2 * 32 + 2 * 16


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_rows_that_move_nothing_are_left_out(norm):
  """A group that agrees, and of another the action at the group's mean."""
  rows = _rows(4, 12)
  rewards = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0.5, 0, 0.5]], np.float32)
  alive = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]], bool)
  config = swe.get_config("tiny")
  config.train.loss_norm = norm
  samples = policy_gradient.Samples(
    prompts=[rows.prompts[i // 4] for i in range(12)],
    completions=[
      base.Completion(ids, np.full(len(ids), -4.0, np.float32), "stop")
      for ids in rows.actions[:12]
    ],
    advantages=policy_gradient.advantages(config, rewards).reshape(-1),
    kept=np.ones(12, bool),
  )

  def packed(kl_coef):
    config.train.kl_coef = kl_coef
    return policy_gradient.pack(config, samples, None)

  part, places = packed(0.0)
  whole, all_places = packed(0.1)  # A penalty is on all rows.
  np.testing.assert_array_equal(places.reshape(3, 4) >= 0, alive)
  assert (all_places >= 0).all()
  assert batches.computed_tokens(part) < batches.computed_tokens(whole)
  gradients = _step(loss_norm=norm)
  want, got = (gradients(_params(), batch)[0] for batch in (whole, part))
  assert optax.tree.norm(want) > 0
  chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def _scored(rows):
  score = jax.jit(
    functools.partial(
      step_lib.score,
      functools.partial(step_lib.policy_log_probs, qwen3.Qwen3(TINY), chunk=64),
    )
  )
  return functools.partial(
    trie_log.gap, params=_params(), rows=rows, shape=None, count=4,
    dtype="float32",
  ), score  # fmt: skip


def test_the_gap_is_rounding_or_is_warned_of(caplog):
  rows = _rows(1, 12)
  gap, score = _scored(rows)
  with caplog.at_level("WARNING"):
    assert gap(score)["trie/gap"] < 1e-4
  assert not caplog.text

  def blind(params, batch):
    """A mask that hides a token of the trie from all that follow it."""
    return score(params, batch.replace(ends=np.minimum(batch.ends, 5)))

  with caplog.at_level("WARNING"):
    assert gap(blind)["trie/gap"] > 1e-2
  assert "between a trie and separate sequences" in caplog.text


def test_tokens_of_a_step():
  # Prompts of 4, 4 and 3 tokens, each without its last: 3 + 0 + 1 tokens of
  # the trie; actions of 2, 1 and 2.
  rows = dataclasses.replace(
    _rows(0, 5),
    prompts=[np.array(p) for p in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 9, 9])],
    actions=[np.array(a) for a in ([1, 1], [2], [3, 3])],
    weights=[np.ones(n) for n in (2, 1, 2)],
    advantages=np.ones(3),
    sampler_log_probs=[np.zeros(n) for n in (2, 1, 2)],
  )
  batch, _ = batches.pack(rows)
  found = trie_log.tokens(rows.prompts, rows.actions, batch)
  assert found == {
    "trie/tokens_separate": 16.0,
    "trie/tokens_least": 9.0,
    "trie/tokens_computed": float(batch.tries.size + batch.places.size),
  }
  # Sampled too: 11 + 5 tokens apart, 4 + 5 at least, 128 + 3 * 16 computed.
  stats = jax_sampler.Stats(11, 4, 128, 5, 48)
  with_sampling = trie_log.tokens(rows.prompts, rows.actions, batch, stats)
  assert list(with_sampling) == list(base.TRIE_TOKENS)
  assert [with_sampling[k] - found[k] for k in base.TRIE_TOKENS] == [
      16, 9, 176,
  ]  # fmt: skip
