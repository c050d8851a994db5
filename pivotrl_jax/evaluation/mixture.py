"""The chats that a base policy is trained on: all worlds and all suites.

A chat is a function of (index, seed), so that training can stop anywhere and
go on. The worlds are played by an agent that is right most of the time; what
it does poorly is learned as well, so that the policy has much to gain. Tasks
are those of "train" beyond any that an agent's data has.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs import worlds
from pivotrl_jax.evaluation import suites

FIRST_TASK = 10_000_000  # Data of agents come from before it.
# World -> the share of poor turns in its episodes.
POOR = {
  "swe": 0.25, "tau": 0.25, "terminal": 0.35, "terminal_calls": 0.35,
  "search": 0.25,
}  # fmt: skip
# World or suite -> its share of the chats, relative: more of what is learned
# late. Episodes are some ten times as long as questions.
SHARES: dict[str, float] = {
  "swe": 2.0, "tau": 2.0, "terminal": 2.0, "terminal_calls": 1.0, "search": 2.0,
  "instructions": 4.0, "contest": 4.0, "arithmetic": 4.0, "programs": 1.0,
  "formulas": 1.0, "knowledge": 5.0, "languages": 3.0, "translation": 2.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chat:
  """One chat, and which world or suite it is of."""

  source: str
  messages: tuple[types.Message, ...]
  tools: tuple[dict[str, Any], ...]


def chat(
  index: int, seed: int, *, shares: Mapping[str, float] = SHARES
) -> Chat:
  """Chat `index` of the endless mixture.

  Args:
    index: which.
    seed: of everything.
    shares: relative shares of worlds and suites; the others give none.
  """
  rng = base.generator("mixture", seed, index)
  names, weights = tuple(shares), list(shares.values())
  total = sum(weights)
  name = names[int(rng.choice(len(names), p=[w / total for w in weights]))]
  if name in worlds.WORLDS:
    episode = worlds.demonstrate(
      name, FIRST_TASK + index, "train", seed, poor=POOR[name]
    )
    return Chat(name, episode.messages, episode.tools)
  # Of one draw each: questions of a seed of their own.
  (question,) = suites.questions(name, "train", f"{seed}/{index}", 1)
  answer = types.Message("assistant", question.draft.answer)
  return Chat(name, (*question.messages, answer), ())
