"""How an episode goes, and that its turns' tokens begin the next prompt."""

import dataclasses

import numpy as np
import pytest

from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy
from pivotrl_jax.envs import episode

SAMPLING = base.SamplingParams(max_tokens=16, stop_ids=())


@dataclasses.dataclass(frozen=True)
class _State:
  turn: int = 0
  said: str = ""

  @property
  def done(self):
    return self.said == "done"


class _Parrot:
  """A world that ends at "done" and is content after two turns before it."""

  TOOLS = ()

  def reset(self, task):
    return _State(), (types.Message("user", "Go on."),)

  def step(self, task, state, action):
    said = getattr(action, "content", "")
    return _State(state.turn + 1, said), (types.Message("user", "And?"),)

  def success(self, task, state):
    return state.done and state.turn > 2


class _Scripted:
  """Says one text after the other, in whole tokens or letter by letter."""

  def __init__(self, tokenizer, texts, *, by_letter=False):
    self._tokenizer, self._texts = tokenizer, iter(texts)
    self._by_letter = by_letter

  def sample(self, prompts, sampling, seeds):
    text = next(self._texts)
    parts = list(text) if self._by_letter else [text]
    ids = [i for part in parts for i in self._tokenizer.encode(part)]
    ids += self._tokenizer.encode("<|im_end|>")
    return [
      base.Completion(
        np.array(ids, np.int32), np.zeros(len(ids), np.float32), "stop"
      )
    ] * len(prompts)


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load(policy.MINI)


def _play(tokenizer, texts, *, turns=4, longest=500, **more):
  (found,) = episode.run_episodes(
    _Scripted(tokenizer, texts, **more), tokenizer, _Parrot(), ["t"], [0],
    sampling=SAMPLING, max_turns=turns, max_prompt_tokens=longest,
  )  # fmt: skip
  return found


@pytest.mark.parametrize(
  ("texts", "end", "limits"),
  [
    (["a", "b", "done"], "success", {}),
    (["a", "done"], "failed", {}),
    (["a", "b", "c", "d"], "out_of_turns", {}),
    (["a", "b"], "out_of_turns", {"turns": 2}),
    (["a"], "prompt_too_long", {"longest": 30}),
  ],
)
def test_how_it_ends(tokenizer, texts, end, limits):
  if "longest" in limits:  # Room for the first prompt alone.
    first = render.prompt_ids(tokenizer, _Parrot().reset("t")[1], ())
    limits = {"longest": len(first)}
  found = _play(tokenizer, texts, **limits)
  assert (found.end, found.success) == (end, end == "success")
  assert [t.text for t in found.sampled] == texts
  assert found.turns == len(texts)
  assert found.tokens == sum(len(t.completion.ids) for t in found.sampled)
  assert found.prefix_breaks == 0
  assert len(found.messages) == 1 + 2 * len(texts)


def test_text_in_other_tokens_breaks_the_prefix(tokenizer):
  word = "pattern"
  assert len(tokenizer.encode(word)) < len(word)
  found = _play(tokenizer, [word, word, "done"], by_letter=True)
  # Of three turns, two are followed by a prompt.
  assert found.success and found.prefix_breaks == 2
