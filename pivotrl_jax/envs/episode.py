"""Episodes: an engine acts in an environment until done or out of turns.

All episodes of a call advance in lockstep, one engine call a turn, so that
the engine sees a batch. An episode's tokens are a function of its own seed.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from pivotrl_jax import seeds as seeds_lib
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.envs import base as envs_base


@dataclasses.dataclass(frozen=True)
class Turn:
  """One action of an episode, as it was sampled.

  Attributes:
    prompt: `[P]` token ids of the chat before it.
    completion: what was sampled.
    text: the same, decoded.
  """

  prompt: np.ndarray
  completion: base.Completion
  text: str


@dataclasses.dataclass(frozen=True)
class Episode:
  """How one episode went.

  Attributes:
    success: the world's final check.
    end: "success", or else why it ended: "failed" (the agent was done),
      "prompt_too_long" or "out_of_turns".
    messages: the whole chat.
    sampled: its turns, in order.
  """

  success: bool
  end: str
  messages: tuple[types.Message, ...]
  sampled: tuple[Turn, ...]

  @property
  def turns(self) -> int:
    """Actions taken."""
    return len(self.sampled)

  @property
  def tokens(self) -> int:
    """Tokens sampled."""
    return sum(len(turn.completion.ids) for turn in self.sampled)

  @property
  def prefix_breaks(self) -> int:
    """Turns whose prompt does not begin with all tokens of the one before.

    A template that rewrites the chat as it goes on breaks it, and so does text
    that the tokenizer would have written in other tokens than were sampled.
    """
    count = 0
    for before, after in zip(self.sampled, self.sampled[1:], strict=False):
      whole = np.concatenate([before.prompt, before.completion.ids])
      count += not np.array_equal(after.prompt[: len(whole)], whole)
    return count


@dataclasses.dataclass
class _Run:
  """An episode that is being played."""

  state: Any
  messages: tuple[types.Message, ...]
  sampled: list[Turn] = dataclasses.field(default_factory=list)
  end: str = "out_of_turns"


def run_episodes(
  engine: base.Engine,
  tokenizer: tokenizer_lib.Tokenizer,
  env: envs_base.Env,
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
  runs = [_Run(*env.reset(task)) for task in tasks]
  live = list(range(len(tasks)))
  for turn in range(max_turns):
    prompts = {
      i: render.prompt_ids(tokenizer, runs[i].messages, env.TOOLS) for i in live
    }
    for i in live:
      if len(prompts[i]) > max_prompt_tokens:
        runs[i].end = "prompt_too_long"
    live = [i for i in live if len(prompts[i]) <= max_prompt_tokens]
    if not live:
      break
    sampled = engine.sample(
      [prompts[i] for i in live],
      sampling,
      [seeds_lib.row_seed(seeds[i], turn) for i in live],
    )
    for i, completion in zip(live, sampled, strict=True):
      _advance(env, tasks[i], runs[i], tokenizer, prompts[i], completion)
    live = [i for i in live if not runs[i].state.done]
  return [
    _ended(env.success(task, run.state), run)
    for task, run in zip(tasks, runs, strict=True)
  ]


def _advance(env, task, run, tokenizer, prompt, completion):
  """Takes `run` one action further."""
  text, said = parse.read(
    tokenizer, completion, opened=render.opens_thinking(tokenizer, prompt)
  )
  if isinstance(said, types.ParseFailure):
    # The world answers; the chat keeps what was said, as it was sampled.
    action, message = said, types.Message("assistant", text, raw=True)
  else:
    # Calls get the ids that their answers refer to.
    calls = tuple(
      dataclasses.replace(call, id=f"call_{len(run.sampled)}_{n}")
      for n, call in enumerate(said.tool_calls)
    )
    message = dataclasses.replace(said, tool_calls=calls)
    action = types.action_of(message)
  run.state, answers = env.step(task, run.state, action)
  run.messages = (*run.messages, message, *answers)
  run.sampled.append(Turn(prompt, completion, text))


def _ended(success, run):
  end = "success" if success else "failed" if run.state.done else run.end
  return Episode(bool(success), end, tuple(run.messages), tuple(run.sampled))
