"""The worlds by name, and demonstrations of their experts."""

from typing import Any

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs import search
from pivotrl_jax.envs import swe
from pivotrl_jax.envs import tau
from pivotrl_jax.envs import terminal
from pivotrl_jax.envs.terminal import calls as terminal_calls

WORLDS: dict[str, base.Env] = {
  "swe": swe,
  "tau": tau,
  "terminal": terminal,
  "terminal_calls": terminal_calls,
  "search": search,
}
MAX_TURNS = 12  # Of an expert; none needs more.
MAX_PROMPT_TOKENS = 2048  # Of an episode; none is nearly as long.
DEMONSTRATIONS = 100  # Where a config says no number.


def of(config: Any) -> str | None:
  """The world that a run takes its data from; None with data of its own."""
  if config.data.format != "world" or config.data.path:
    return None
  return config.get("world") or config.domain


def demonstrate(
  name: str, index: int, split: str, seed: int, *, poor: float = 0.0
) -> types.Trajectory:
  """An episode in which each turn is poor with probability `poor`.

  Args:
    name: a key of `WORLDS`.
    index, split: the task, see `Env.make_task`.
    seed: of the agent's choices.
    poor: 0 always succeeds.

  Returns:
    The trajectory, with the world's own verdict as its reward.
  """
  env = WORLDS[name]
  task = env.make_task(index, split)
  rng = np.random.default_rng([seed, index])
  state, messages = env.reset(task)
  for turn in range(MAX_TURNS):
    chosen = env.act_poorly if rng.random() < poor else env.act
    action = numbered(chosen(task, state, rng), turn)
    state, answers = env.step(task, state, action)
    messages = (*messages, types.message_of(action), *answers)
    if state.done:
      break
  solved = env.success(task, state)
  return types.Trajectory(
    id=f"{task.id}-{seed}",
    domain=env.DOMAIN,
    source="mini world",
    task_id=task.id,
    reward=float(solved),
    success=solved,
    tools=env.TOOLS,
    messages=messages,
    extra=env.ROW,
  )


def numbered(action: types.Action, turn: int) -> types.Action:
  """`action` with the ids that answers to its calls refer to."""
  calls = tuple(
    types.ToolCall(c.name, c.arguments, f"call_{turn}_{n}")
    for n, c in enumerate(action.calls)
  )
  return types.Action(action.type, action.content, calls)
