"""The mini policy's training stream: what is learned, and when."""

import itertools

import numpy as np
import pytest

from launchers import mini_stream
from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.engines import policy
from pivotrl_jax.evaluation import mixture

WEIGHTS = mini_stream.Weights(answer=3.0, context=0.25)
SHAPE = batches.Shape(
  micro_batches=1, least=1, lines=1, trie=384, branch=512, branches=16,
  width=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load(policy.MINI)


def _by_source():
  """A chat of each world and suite."""
  found = {}
  for index in itertools.count():
    chat = mixture.chat(index, 5)
    found.setdefault(chat.source, chat)
    if len(found) == len(mixture.SHARES):
      return found


@pytest.fixture(scope="module")
def chats():
  return _by_source()


@pytest.mark.parametrize("source", mixture.SHARES)
def test_a_chat_is_its_prompts_and_actions(tokenizer, chats, source):
  chat = chats[source]
  row = mini_stream.encode(tokenizer, chat, WEIGHTS, 10_000)
  ids = np.concatenate([row.prompt, row.ids])
  weights = np.concatenate([np.zeros(len(row.prompt)), row.weights])
  spoken = np.zeros(len(ids), bool)
  for i, message in enumerate(chat.messages):
    if message.role == "assistant":
      # As the engine sees the turn, and as the policy would sample it.
      prompt = render.prompt_ids(tokenizer, chat.messages[:i], chat.tools)
      action = render.action_ids(
        tokenizer, chat.messages[:i], message, chat.tools
      )
      end = len(prompt) + len(action)
      np.testing.assert_array_equal(ids[:end], np.r_[prompt, action])
      spoken[len(prompt) : end] = True
  assert set(weights[spoken]) == {1.0 if chat.tools or "terminal" in source
                                  else 3.0}  # fmt: skip
  assert set(weights[~spoken]) <= {0.0, 0.25}


def test_context_weighs_where_it_was_there_before(tokenizer):
  chat = mixture.Chat(
    "arithmetic",
    (types.Message("user", "9 9 8"), types.Message("assistant", "7")),
    (),
  )
  row = mini_stream.encode(tokenizer, chat, WEIGHTS, 100)
  # <|im_start|> user \n 9 ␣ 9 ␣ 8 <|im_end|> \n <|im_start|> assistant \n 7
  # <|im_end|> \n: the first is the prompt. Spoken are 7 and <|im_end|>; 9 and
  # ␣ come twice, as do the marks and line breaks.
  text = [tokenizer.hf.decode([i]) for i in row.ids]
  found = list(zip(text, row.weights.tolist(), strict=True))
  assert found == [
      ("user", 0), ("\n", 0), ("9", 0), (" ", 0), ("9", 0.25), (" ", 0.25),
      ("8", 0), ("<|im_end|>", 0), ("\n", 0.25), ("<|im_start|>", 0.25),
      ("assistant", 0), ("\n", 0.25), ("7", 3), ("<|im_end|>", 3),
      ("\n", 0.25),
  ]  # fmt: skip


def test_the_worlds_part_is_the_prompt(tokenizer, chats):
  for source, chat in chats.items():
    row = mini_stream.encode(tokenizer, chat, WEIGHTS, 50)
    head = tokenizer.decode(row.prompt)
    if chat.messages[0].role == "system":
      assert chat.messages[0].content in head
      assert all(t["function"]["name"] in head for t in chat.tools)
    else:
      assert head == "<|im_start|>", source
    assert len(row.ids) <= 50


@pytest.fixture(scope="module")
def shards():
  make = lambda i: mini_stream.shard(  # noqa: E731
    policy.MINI, 0, i, shape=SHAPE, weights=WEIGHTS
  )
  return [make(0), make(1), make(1)]


def test_steps_fit_one_line_and_waste_little(shards):
  padding = []
  for rows in shards[0]:
    batch = mini_stream.pack(rows, SHAPE)
    assert batch.mask.shape == (1, 1, SHAPE.branches, SHAPE.width)
    padding.append(1 - sum(len(r.ids) for r in rows) / SHAPE.branch)
    np.testing.assert_allclose(
      batch.mask.sum(), sum(r.weights.sum() for r in rows), rtol=1e-6
    )
  assert np.mean(padding) < 0.1


def test_shards_are_a_function_of_their_index_and_share_no_episode(shards):
  texts = [[r.ids.tobytes() for rows in s for r in rows] for s in shards]
  assert texts[1] == texts[2]
  # Questions of suites may come again: some have a few thousand.
  first, second = (
    {r.ids.tobytes() for rows in s for r in rows if len(r.prompt) > 1}
    for s in shards[:2]
  )
  assert len(first) > 50 and not first & second


def _streamed(first, count, *, drills):
  """`count` batches from step `first` on."""
  with mini_stream.opened(
    policy.MINI, 0, first, shape=SHAPE, weights=WEIGHTS, drills=drills
  ) as stream:
    return [next(stream) for _ in range(count)]


def test_the_stream_goes_on_anywhere(shards):
  got = _streamed(mini_stream.SHARD - 2, 4, drills=0)
  wanted = [mini_stream.pack(r, SHAPE) for r in shards[0][-2:] + shards[1][:2]]
  for one, other in zip(got, wanted, strict=True):
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.tries, other.tries)


def test_a_drill_is_runs_said_twice():
  drill = mini_stream.repeats(policy.MINI, 0, 3, shape=SHAPE)
  assert len(drill) == mini_stream.SHARD
  for rows in drill:
    batch = mini_stream.pack(rows, SHAPE)
    # A branch takes 32 places or more, of 512 in all, a run said twice 95 at
    # most; all but the first token of each second time is learned.
    used = sum(max(32, len(r.ids)) for r in rows)
    assert SHAPE.branch - 95 < used <= SHAPE.branch
    assert batch.mask.sum() == sum((len(r.ids) + 1) // 2 - 1 for r in rows)
    for row in rows:
      said = np.r_[row.prompt, row.ids]
      once, again = np.split(said, 2)
      assert 8 <= len(once) <= 48
      np.testing.assert_array_equal(once, again)
      np.testing.assert_array_equal(
        np.flatnonzero(row.weights), np.arange(len(once), len(said) - 1)
      )
  other = mini_stream.repeats(policy.MINI, 0, 4, shape=SHAPE)
  assert drill[0][0].ids.tobytes() != other[0][0].ids.tobytes()


def test_chats_follow_the_drills(shards):
  got = _streamed(mini_stream.SHARD - 1, 2, drills=1)
  drill = mini_stream.repeats(policy.MINI, 0, 0, shape=SHAPE)
  for one, rows in zip(got, [drill[-1], shards[1][0]], strict=True):
    np.testing.assert_array_equal(
      one.actions, mini_stream.pack(rows, SHAPE).actions
    )
