"""smolagents benchmark rows: a log of steps, calls printed as Python lists.

An assistant text that only repeats the call that follows it is dropped.
"""

import ast
from collections.abc import Iterator
import dataclasses
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known

_KEYS = ("role", "content", "raw", "token_usage")
_CALLS = "Calling tools:\n"
_OBSERVATION = "Observation:\n"
# How a text begins that repeats a call.
_REPEATED = "Tool call "
_TOOL = re.compile(
  r"^- (?P<name>\w+): (?P<description>.*)\n"
  r" +Takes inputs: (?P<inputs>\{.*\})$",
  re.MULTILINE,
)


def matches(value: Any) -> bool:
  """Whether a row is a run with its steps."""
  return isinstance(value, dict) and isinstance(
    value.get("intermediate_steps"), list
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, line, row):
  found: list[types.Message] = []
  steps = records.field(row, "intermediate_steps", list, "row")
  for i, step in enumerate(steps):
    place = f"intermediate_steps[{i}]"
    role = records.field(step, "role", str, place)
    said = chat.text(step.get("content"), place)
    known.refuse_others(step, place, _KEYS, known.METADATA)
    if role == "tool-call":
      before = types.Message("assistant")
      if found and found[-1].role == "assistant" and not found[-1].tool_calls:
        before = found.pop()
      if before.content.lstrip().startswith(_REPEATED):
        before = dataclasses.replace(before, content="")
      calls = _calls(said, place)
      found.append(dataclasses.replace(before, tool_calls=calls))
    elif role == "tool-response":
      last = found[-1].tool_calls if found else ()
      call_id = last[0].id if last else None
      answer = said.removeprefix(_OBSERVATION)
      found.append(types.Message("tool", answer, tool_call_id=call_id))
    else:
      found.append(chat.message({"role": role, "content": said}, place))
  answer, truth = row.get("answer"), row.get("true_answer")
  success = None
  if truth is not None:
    success = chat.plain(str(answer)) == chat.plain(str(truth))
  return chat.trajectory(
    file,
    "smolagents",
    line,
    found,
    tools=_tools(found[0].content if found else ""),
    task_id=row.get("original_question"),
    reward=success,
    success=success,
  )


def _calls(said, place):
  text = said.partition(_CALLS)[2] or said
  try:
    values = ast.literal_eval(text)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    values = None
  if not isinstance(values, list) or not values:
    raise errors.InputError(
      f"{place}: {said[:60]!r}; expected a Python list of calls"
    )
  return tuple(chat.tool_call(value, place) for value in values)


def _tools(system):
  """Schemas of the tools that the system prompt lists."""
  tools = []
  for match in _TOOL.finditer(system):
    try:
      inputs = ast.literal_eval(match["inputs"])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
      continue
    required = [k for k, v in inputs.items() if not v.pop("nullable", False)]
    for schema in inputs.values():
      if schema.get("type") == "any":  # No JSON Schema type: allow all.
        del schema["type"]
    tools.append(
      {
        "name": match["name"],
        "description": match["description"],
        "parameters": {
          "type": "object",
          "properties": inputs,
          "required": required,
        },
      }
    )
  return tools
