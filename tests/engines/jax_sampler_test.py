"""The embedded sampler: a row is a function of its prompt and seed."""

import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax import compilations
from pivotrl_jax.data import batches
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import step as step_lib

TINY = qwen3.Config(64, 32, 48, 2, 4, 2, 16, tie_word_embeddings=True)
STOPS = tuple(range(8))


@pytest.fixture(scope="module")
def params():
  boxed = qwen3.init_params(TINY, jax.random.key(0))
  # Wider than at the start of training, so that choices differ.
  return jax.tree.map(lambda x: 6 * x, nn.unbox(boxed))


@pytest.fixture(scope="module")
def engine(params):
  engine = jax_sampler.JaxSampler(TINY, chunk=4)
  engine.load(params, "0")
  return engine


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(0)
  trunk = rng.integers(0, 64, 21).astype(np.int32)
  other = rng.integers(0, 64, 6).astype(np.int32)
  return [trunk, trunk, trunk[:9], trunk[:1], trunk[:15], other, other, other]


def _sampling(**knobs):
  return base.SamplingParams(**({"max_tokens": 14, "stop_ids": STOPS} | knobs))


def _whole(params, ids):
  """Logits `[T, V]` of a whole sequence: a branch that sees no trie."""
  nothing = jnp.zeros((1, len(ids)), int)
  hidden = qwen3.Qwen3(TINY).apply(
      {"params": params}, ids[None], ids[None],
      qwen3.Layout(
          ends=nothing, depths=nothing, past=nothing - 1,
          branch_ends=nothing + len(ids),
          branch_depths=nothing + jnp.arange(len(ids)),
      ),
      reach=len(ids) - 1,
  )  # fmt: skip
  return hidden[0] @ qwen3.unembedding(params, TINY)


def _same(left, right, near=1e-5):
  np.testing.assert_array_equal(left.ids, right.ids)
  np.testing.assert_allclose(
    left.log_probs, right.log_probs, rtol=near, atol=near
  )
  assert left.finish == right.finish


def test_a_row_does_not_depend_on_its_batch(engine, prompts):
  together = engine.sample(prompts, _sampling(), range(8))
  assert len({len(c.ids) for c in together}) > 1
  for row in (0, 3, 6):
    alone = engine.sample([prompts[row]], _sampling(), [row])[0]
    _same(alone, together[row])
  order = [5, 2, 7, 0]
  moved = engine.sample([prompts[i] for i in order], _sampling(), order)
  for row, completion in zip(order, moved, strict=True):
    _same(completion, together[row])


def test_budgets_change_nothing(engine, params, prompts):
  small = jax_sampler.JaxSampler(TINY, batch_tokens=32, batch_rows=2, chunk=3)
  small.load(params, "0")
  want = engine.sample(prompts, _sampling(), range(8))
  for left, right in zip(
    want, small.sample(prompts, _sampling(), range(8)), strict=True
  ):
    _same(left, right)


def test_other_seeds_give_other_samples(engine, prompts):
  same = [prompts[0]] * 16
  drawn = engine.sample(same, _sampling(max_tokens=3), range(16))
  assert len({c.ids.tobytes() for c in drawn}) > 4


def test_log_probs_are_the_trainers(engine, params, prompts):
  drawn = engine.sample(prompts, _sampling(temperature=0.7), range(8))
  batch, places = batches.pack(
    batches.Rows(
      prompts=prompts,
      actions=[c.ids for c in drawn],
      weights=[np.ones(len(c.ids)) for c in drawn],
      advantages=np.zeros(8),
      sampler_log_probs=[c.log_probs for c in drawn],
    )
  )
  log_probs_fn = functools.partial(
    step_lib.policy_log_probs, qwen3.Qwen3(TINY), chunk=64, temperature=0.7
  )
  score = jax.jit(functools.partial(step_lib.score, log_probs_fn))
  got = score(params, batch)
  got = np.asarray(got).reshape(-1, got.shape[-1])[places]
  for row, completion in enumerate(drawn):
    np.testing.assert_allclose(
      got[row, : len(completion.ids)], completion.log_probs, atol=2e-4
    )


def test_greedy_is_the_argmax_of_whole_sequences(engine, params, prompts):
  drawn = engine.sample(
    prompts[:6], _sampling(temperature=0.0, max_tokens=5), range(6)
  )

  @jax.jit
  def following(ids):
    logits = _whole(params, ids)
    return jnp.argmax(logits, -1)

  for prompt, completion in zip(prompts, drawn, strict=False):
    ids = np.concatenate([prompt, completion.ids])
    likeliest = np.asarray(following(np.resize(ids, 32)))
    start = len(prompt) - 1
    np.testing.assert_array_equal(
      likeliest[start : start + len(completion.ids)], completion.ids
    )


def test_stop_ends_a_row_and_length_cuts_it(engine, prompts):
  drawn = engine.sample(prompts, _sampling(max_tokens=6), range(8))
  for completion in drawn:
    if completion.finish == "stop":
      assert completion.ids[-1] in STOPS
    else:
      assert len(completion.ids) == 6 and completion.ids[-1] not in STOPS
    assert not np.isin(completion.ids[:-1], STOPS).any()


def test_top_k_of_one_is_greedy(engine, prompts):
  greedy = engine.sample(prompts, _sampling(temperature=0.0), range(8))
  first = engine.sample(prompts, _sampling(top_k=1), range(8))
  narrow = engine.sample(prompts, _sampling(top_p=1e-6), range(8))
  for a, b, c in zip(greedy, first, narrow, strict=True):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.ids, c.ids)


def test_sampled_frequencies_are_the_policys(engine, params):
  prompt = np.array([3, 9, 27], np.int32)
  count = 4000
  drawn = engine.sample([prompt] * count, _sampling(max_tokens=1), range(count))
  logits = _whole(params, jnp.asarray(prompt))[-1]
  want = np.asarray(jax.nn.softmax(logits))
  got = np.bincount([c.ids[0] for c in drawn], minlength=64) / count
  # Five standard errors of each frequency.
  assert (np.abs(got - want) < 5 * np.sqrt(want / count) + 1e-3).all()


def test_shared_prompts_are_prefilled_once(engine, params, prompts):
  engine.load(params, "0")
  engine.sample(prompts, _sampling(), range(8))
  # Paths of 20 and 5 tokens; the prompts are 21+21+9+1+15+6+6+6 = 85.
  assert engine.stats.trie_tokens == 25
  assert engine.stats.prompt_tokens == 85
  assert engine.stats.prefilled_tokens == 128  # The smallest chunk.


def test_the_pool_outlives_a_call_until_the_weights_change(params):
  rng = np.random.default_rng(1)
  history = rng.integers(0, 64, 900).astype(np.int32)
  # Turns of two episodes with one beginning, and one that begins anew.
  turns = [
    [history[:300], history[:310]],
    [history[:420], np.concatenate([history[:310], history[500:600]])],
    [history[:600], np.concatenate([history[:310], history[500:700]])],
    [history[700:], history[:300]],
  ]
  engine = jax_sampler.JaxSampler(TINY, chunk=4)
  engine.load(params, "0")
  fresh = jax_sampler.JaxSampler(TINY, chunk=4)
  computed = []
  for n, prompts in enumerate(turns):
    fresh.load(params, str(n))
    want = fresh.sample(prompts, _sampling(), range(2))
    got = engine.sample(prompts, _sampling(), range(2))
    for left, right in zip(want, got, strict=True):
      _same(left, right)
    computed.append(engine.stats.prefilled_tokens)
  # New tokens: 309, 110 + 100, 180 + 100, 199; in chunks of 128.
  assert computed == [384, 256, 384, 256]
  engine.load(jax.tree.map(lambda x: 0.5 * x, params), "1")
  got = engine.sample(turns[0], _sampling(), range(2))
  assert engine.stats.prefilled_tokens == 384
  fresh.load(jax.tree.map(lambda x: 0.5 * x, params), "1")
  want = fresh.sample(turns[0], _sampling(), range(2))
  for left, right in zip(want, got, strict=True):
    _same(left, right)


@pytest.mark.parametrize("body", ["xla", "pallas"])
def test_turns_of_a_trajectory_decode_in_one_long_line(
  engine, params, monkeypatch, body
):
  rng = np.random.default_rng(4)
  path, other = rng.integers(0, 64, (2, 2000)).astype(np.int32)
  turns = [path[:n] for n in (2000, 1100, 1500, 1900)] + [other]
  prompts = [turn for turn in turns for _ in range(4)]
  long = jax_sampler.JaxSampler(TINY, chunk=4, attention=body)
  long.load(params, "0")
  long.prepare([2000], _sampling(), prompts=5, rows=4)
  compiled = compilations.Compilations()
  got = long.sample(prompts, _sampling(), range(20))
  assert not compiled.count
  for row in (0, 4, 9, 15, 19):  # Of each turn.
    alone = engine.sample([prompts[row]], _sampling(), [row])[0]
    _same(alone, got[row], near=1e-4)
  # The lines run at once, or one after another: the same bits.
  monkeypatch.setattr(os, "cpu_count", lambda: None)
  for left, right in zip(
    got, long.sample(prompts, _sampling(), range(20)), strict=True
  ):
    _same(left, right, near=0)
  # 2 lines of 2,048: the 16 rows of the path, the 4 of the other in 8 slots.
  greedy = _sampling(temperature=0.0, stop_ids=(-1,))
  long.sample(prompts, greedy, range(20))
  assert long.stats.decoded_slots == (16 + 8) * greedy.max_tokens


def test_what_is_prepared_compiles_nothing_more(engine, params, prompts):
  want = engine.sample(prompts, _sampling(), range(8))
  # A chunk of its own, so that no other test has compiled for it.
  ready = jax_sampler.JaxSampler(TINY, chunk=5)
  ready.load(params, "0")
  ready.prepare([9, 600], _sampling(), prompts=16, rows=4)
  compiled = compilations.Compilations()
  got = ready.sample(prompts, _sampling(), range(8))
  for left, right in zip(want, got, strict=True):
    _same(left, right)
  ready.sample([np.arange(500) % 64] * 9, _sampling(), range(9))
  ready.sample(
    [np.full(n, n % 64) for n in range(1, 40)], _sampling(), range(39)
  )
  assert compiled.count == 0
  # What is not prepared for does, so the count can tell.
  ready.sample(prompts, _sampling(max_tokens=31), range(8))
  assert compiled.count > 0


def test_what_only_calls_can_tell_is_readied_by_them(params):
  engine = jax_sampler.JaxSampler(TINY, chunk=6)
  engine.load(params, "0")
  engine.prepare((), _sampling(), prompts=4, rows=1, longest=600)
  # Warm-ups are no surprises; nothing else is compiled beside them.
  compiled = compilations.Compilations()
  for size in (40, 300, 40, 590):
    engine.sample([np.arange(size) % 64] * 2, _sampling(), range(2))
  assert compiled.count == 0
  assert engine._cold  # Lines of 1,024 tokens were not needed.


def test_rows_that_go_on_compute_nothing_again(engine, params, prompts):
  distinct = [prompts[0], prompts[2], prompts[5]]
  sampling = _sampling(max_tokens=4, stop_ids=(), goes_on=True)
  keeping = jax_sampler.JaxSampler(TINY, chunk=4)
  keeping.load(params, "0")
  said = list(distinct)
  for turn in range(3):
    engine.load(params, "0")
    seeds = range(10 * turn, 10 * turn + 3)
    want = engine.sample(said, _sampling(max_tokens=4, stop_ids=()), seeds)
    got = keeping.sample(said, sampling, seeds)
    for left, right in zip(want, got, strict=True):
      _same(left, right)
    assert (keeping.stats.prefilled_tokens > 0) == (turn == 0)
    said = [
      np.concatenate([p, c.ids]) for p, c in zip(said, got, strict=True)
    ]


def test_turns_that_follow_compute_only_what_is_new(engine, params):
  # As in episodes: whoever stopped is answered and asked again.
  rng = np.random.default_rng(1)
  trunk = rng.integers(0, 64, 20)
  said = [np.concatenate([trunk, [n]]).astype(np.int32) for n in range(24)]
  keeping = jax_sampler.JaxSampler(TINY, chunk=2)
  keeping.load(params, "0")
  keeping.prepare(
    (), _sampling(goes_on=True), prompts=24, rows=1, longest=100
  )
  lengths = set()
  for turn in range(3):
    engine.load(params, "0")
    seeds = range(100 * turn, 100 * turn + 24)
    want = engine.sample(said, _sampling(), seeds)
    got = keeping.sample(said, _sampling(goes_on=True), seeds)
    for left, right in zip(want, got, strict=True):
      _same(left, right, 1e-4)  # Keys of another batch's roundings.
    answers = rng.integers(0, 64, (24, 3)).astype(np.int32)
    # One chunk: the trunk; then of 24 rows the last token said and two of the
    # answer, for the third, its prompt's last, is decoded.
    assert keeping.stats.prefilled_tokens == 128
    lengths |= {len(c.ids) for c in got}
    said = [
      np.concatenate([p, c.ids, answer])
      for p, c, answer in zip(said, got, answers, strict=True)
    ]
  assert len(lengths) > 5  # So rows were dropped early and late.


def test_shapes_of_a_room():
  room = jax_sampler.Room(lengths=(256, 512), lines=16, rows=8, tokens=4096)
  # The larger axis is quartered until eight rows are left.
  assert room.shapes(256) == [(16, 8), (4, 8), (4, 2)]
  # 4,096 tokens hold eight lines of 512.
  assert room.shapes(512) == [(8, 8), (8, 2), (2, 2)]
  assert [room.length(n) for n in (1, 256, 257)] == [256, 256, 512]
  # A long line is a batch; its branches are halved.
  room = dataclasses.replace(room, lengths=(1024, 2048), wide=32)
  assert room.shapes(1024) == [(4, 8), (4, 2)]
  assert room.shapes(2048) == [(1, 32), (1, 16), (1, 8)]


def test_misuse_is_an_error(prompts):
  engine = jax_sampler.JaxSampler(TINY)
  with pytest.raises(ValueError, match="no weights"):
    engine.sample(prompts, _sampling(), range(8))
  engine.load({}, "0")
  with pytest.raises(ValueError, match="3 seeds; expected 8"):
    engine.sample(prompts, _sampling(), range(3))
