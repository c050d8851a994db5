"""A terminal: keystrokes in, what it prints out; the goal is the files.

Replies are JSON as Terminus 2 has it: analysis, plan, commands (keystrokes,
typed as they are, and perhaps a duration) and whether the task is complete.
Success is the goal's files, all of them and no other.
"""

import dataclasses
import json
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.envs.terminal import shell
from pivotrl_jax.envs.terminal import tasks

DOMAIN = "terminal"
ROW: dict[str, Any] = {"metadata": {"harness": "terminus_2"}}
TOOLS: tuple[dict[str, Any], ...] = ()
SYSTEM = (
  "You work in a shell. Reply in JSON: analysis, plan, commands (keystrokes),"
  " task_complete."
)
MOST_SHOWN = 400  # Characters of output; its end is shown.
_MOST_COMMANDS = 8
_KINDS = {"analysis": str, "plan": str, "commands": list}


@dataclasses.dataclass(frozen=True)
class State:
  """An episode so far.

  Attributes:
    shell: files, and where one stands.
    done: the agent has said so.
    typed: keystrokes that no Enter has sent yet.
    log: lines that were carried out.
  """

  shell: shell.Shell
  done: bool = False
  typed: str = ""
  log: tuple[str, ...] = ()


def start(task: tasks.Task, system: str):
  """The first state and messages, under a system prompt."""
  return State(shell.Shell(task.start)), (
    types.Message("system", system),
    types.Message("user", task.draft.instruction),
  )


def reset(task: tasks.Task) -> tuple[State, tuple[types.Message, ...]]:
  """The first state, the system prompt and the instruction."""
  return start(task, SYSTEM)


def step(
  task: tasks.Task, state: State, action: types.Action | types.ParseFailure
) -> tuple[State, tuple[types.Message, ...]]:
  """Types a reply's keystrokes; whatever the model wrote gets an answer."""
  del task
  if state.done:
    return state, ()
  if isinstance(action, types.ParseFailure):
    return state, (types.Message("user", f"Bad reply: {action.reason}."),)
  if action.type != "message":
    answers = tuple(
      types.Message("tool", "No such tool.", tool_call_id=c.id)
      for c in action.calls
    )
    return state, answers
  reply = read(action.content)
  if isinstance(reply, str):
    return state, (types.Message("user", f"Bad reply: {reply}."),)
  output = []
  for command in reply["commands"]:
    state, text = feed(state, command["keystrokes"])
    output.append(text)
  done = bool(reply.get("task_complete"))
  text = "Done." if done else shown("".join(output))
  state = dataclasses.replace(state, done=done)
  return state, (types.Message("user", text),)


def success(task: tasks.Task, state: State) -> bool:
  """Whether the agent has finished and the files are the goal's."""
  return state.done and state.shell.files == task.goal


def read(text: str) -> dict[str, Any] | str:
  """A reply, or why it is none."""
  try:
    reply = json.loads(text)
  except (ValueError, RecursionError):
    return "no JSON"
  if not isinstance(reply, dict):
    return "no JSON object"
  for key, kind in _KINDS.items():
    if not isinstance(reply.get(key), kind):
      return f"no {key}"
  if not isinstance(reply.get("task_complete", False), bool):
    return "task_complete is no boolean"
  if len(reply["commands"]) > _MOST_COMMANDS:
    return "too many commands"
  for command in reply["commands"]:
    keys = command.get("keystrokes") if isinstance(command, dict) else None
    if not isinstance(keys, str):
      return "a command without keystrokes"
  return reply


def feed(state: State, keystrokes: str) -> tuple[State, str]:
  """Types keystrokes: each line break sends a line."""
  if keystrokes in ("C-c", "C-d"):
    return dataclasses.replace(state, typed=""), ""
  *lines, rest = (state.typed + keystrokes).split("\n")
  output, current, log = [], state.shell, state.log
  for line in lines[:_MOST_COMMANDS]:
    current, text = shell.run(current, line)
    log = (*log, line.strip())
    output.append(text)
  rest = rest[: shell.MOST_LINE]
  state = dataclasses.replace(state, shell=current, typed=rest, log=log)
  return state, "".join(output)


def shown(output: str) -> str:
  """What a reply gets to see of an output."""
  text = output.rstrip("\n")
  if len(text) > MOST_SHOWN:
    text = "..." + text[-MOST_SHOWN:]
  return text or "No output."
