"""Episodes: an engine acts in an environment until done or out of turns.

All episodes of a call advance in lockstep, one engine call a turn, so that
the engine sees a batch. An episode's tokens are a function of its own seed.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

from pivotrl_jax import seeds as seeds_lib
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base


class Env(Protocol):
  """A world: a module of pure functions. States carry `done`."""

  TOOLS: tuple[dict[str, Any], ...]

  def make_task(self, index: int, split: str) -> Any:
    """The `index`-th task of "train" or "eval"; the splits share none."""

  def reset(self, task: Any) -> tuple[Any, tuple[types.Message, ...]]:
    """First state and messages."""

  def step(
    self, task: Any, state: Any, action: types.Action | types.ParseFailure
  ) -> tuple[Any, tuple[types.Message, ...]]:
    """Next state, and what the world answers."""

  def success(self, task: Any, state: Any) -> bool:
    """The final check."""


@dataclasses.dataclass(frozen=True)
class Episode:
  """How one episode went.

  Attributes:
    success: the world's final check.
    turns: actions taken.
    tokens: tokens sampled.
    messages: the whole chat.
  """

  success: bool
  turns: int
  tokens: int
  messages: tuple[types.Message, ...]


def run_episodes(
  engine: base.Engine,
  tokenizer: tokenizer_lib.Tokenizer,
  env: Env,
  tasks: Sequence[Any],
  seeds: Sequence[int],
  *,
  sampling: base.SamplingParams,
  max_turns: int,
  max_prompt_tokens: int,
) -> list[Episode]:
  """One episode a task, in order; an episode that outgrows its budget ends.

  Args:
    engine: the policy.
    tokenizer: its tokenizer.
    env: the world.
    tasks: what to do.
    seeds: one a task.
    sampling: how.
    max_turns: most actions of an episode.
    max_prompt_tokens: an episode whose prompt grows past this ends there.
  """
  runs = [list(env.reset(task)) + [0, 0] for task in tasks]
  live = list(range(len(tasks)))
  for turn in range(max_turns):
    prompts = {
      i: render.prompt_ids(tokenizer, runs[i][1], env.TOOLS) for i in live
    }
    live = [i for i in live if len(prompts[i]) <= max_prompt_tokens]
    if not live:
      break
    sampled = engine.sample(
      [prompts[i] for i in live],
      sampling,
      [seeds_lib.row_seed(seeds[i], turn) for i in live],
    )
    for i, completion in zip(live, sampled, strict=True):
      runs[i] = _advance(
        env, tasks[i], runs[i], tokenizer, prompts[i], completion
      )
    live = [i for i in live if not runs[i][0].done]
  return [
    Episode(env.success(task, state), turns, tokens, tuple(messages))
    for task, (state, messages, turns, tokens) in zip(tasks, runs, strict=True)
  ]


def _advance(env, task, run, tokenizer, prompt, completion):
  """`run` (state, messages, turns, tokens) after one more action."""
  state, messages, turns, tokens = run
  text, said = parse.read(
    tokenizer, completion, opened=render.opens_thinking(tokenizer, prompt)
  )
  if isinstance(said, types.ParseFailure):
    # The world answers; the chat keeps what was said, as it was sampled.
    action, message = said, types.Message("assistant", text, raw=True)
  else:
    # Calls get the ids that their answers refer to.
    calls = tuple(
      dataclasses.replace(call, id=f"call_{turns}_{n}")
      for n, call in enumerate(said.tool_calls)
    )
    message = dataclasses.replace(said, tool_calls=calls)
    action = types.action_of(message)
  state, answers = env.step(task, state, action)
  return [
    state,
    (*messages, message, *answers),
    turns + 1,
    tokens + len(completion.ids),
  ]
