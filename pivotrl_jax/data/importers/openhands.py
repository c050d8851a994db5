"""OpenHands' log of LLM calls: `messages`, `response`, `kwargs.tools`.

The last call of a run holds its whole history. A log of all calls gives its
last attempt; a call with a shorter history than the one before is a restart.
"""

from collections.abc import Iterator
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files


def matches(value: Any) -> bool:
  """Whether a document or row is a logged call."""
  return isinstance(value, dict) and {"messages", "response", "kwargs"} <= set(
    value
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """The trajectory that ends in the last call; given-up attempts skipped."""
  last_line, last = None, None
  for line, value in file.rows():
    if isinstance(value, files.Skip):
      yield value
      continue
    if last is not None and _length(value) < _length(last):
      yield files.Skip(
        file.name, str(last_line), "an attempt that was restarted"
      )
    last_line, last = line, value
  if last is not None:
    yield chat.attempt(file, last_line, _trajectory, file, last)


def _length(call):
  return len(call["messages"]) if isinstance(call.get("messages"), list) else 0


def _trajectory(file, call):
  response = records.field(call, "response", dict, "call")
  choices = records.field(response, "choices", list, "response")
  reply = records.field(
    choices[0] if choices else None, "message", dict, "response.choices[0]"
  )
  kwargs = records.field(call, "kwargs", dict, "call")
  instance = file.stem.rpartition("/")[2]
  outcomes = file.beside("outcomes.json") or {}
  outcome = records.field(outcomes, instance, dict, "outcomes.json", default={})
  success = records.field(
    outcome, "resolved", bool, "outcomes.json", default=None
  )
  return chat.trajectory(
    file,
    "openhands",
    None,
    [*chat.messages(call.get("messages")), chat.message(reply, "reply")],
    tools=kwargs.get("tools") or (),
    task_id=instance,
    reward=success,
    success=success,
  )
