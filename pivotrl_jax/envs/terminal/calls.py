"""The same terminal through structured calls, as Codex has them.

`exec_command` types a line; a message ends the episode.
"""

import dataclasses
from typing import Any

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.terminal import environment
from pivotrl_jax.envs.terminal import expert
from pivotrl_jax.envs.terminal import tasks
from pivotrl_jax.envs.terminal.environment import DOMAIN, success

__all__ = [
    "DOMAIN", "ROW", "TOOLS", "act", "act_poorly", "make_task", "reset",
    "step", "success",
]  # fmt: skip
ROW: dict[str, Any] = {"harness": "codex"}
TOOLS: tuple[dict[str, Any], ...] = (
  base.tool("exec_command", "Type a line.", ("cmd",), cmd="string"),
)
SYSTEM = "You work in a shell. Say so when the task is complete."


def make_task(index: int, split: str) -> tasks.Task:
  """Task `index` of a split, always the same."""
  return tasks.make_named("terminal_calls", index, split)


def reset(
  task: tasks.Task,
) -> tuple[environment.State, tuple[types.Message, ...]]:
  """The first state, the system prompt and the instruction."""
  return environment.start(task, SYSTEM)


def step(
  task: tasks.Task,
  state: environment.State,
  action: types.Action | types.ParseFailure,
) -> tuple[environment.State, tuple[types.Message, ...]]:
  """Types the lines of calls; a message is the last word."""
  del task
  if state.done:
    return state, ()
  if isinstance(action, types.ParseFailure):
    return state, (types.Message("user", f"Bad tool call: {action.reason}."),)
  if action.type == "message":
    return dataclasses.replace(state, done=True), (
      types.Message("user", "Done."),
    )
  return base.answer_calls(action.calls, state, _call)


def _call(state, call):
  """Types a call's line -> next state and what it shows."""
  given = base.read_arguments(call, TOOLS)
  if isinstance(given, str):
    return state, given
  state, output = environment.feed(state, given["cmd"] + "\n")
  return state, environment.shown(output)


def act(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """A right action."""
  return _spelled(expert.decide(task, state, rng), rng)


def act_poorly(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """What a mediocre agent might do here instead."""
  return _spelled(expert.decide_poorly(task, state, rng), rng)


def _spelled(move, rng):
  if move.stage == "finish":
    texts = ("The task is complete.", "Done.", "All is done as asked.")
    return base.say(base.pick(rng, texts))
  return base.call(rng, "exec_command", cmd=move.line)
