"""MiroRL: a rendered prompt and response with roles on lines of their own.

The calls are MCP elements in the text; the system text that explains them
stays, since it says more than the schemas it lists.
"""

import ast
from collections.abc import Iterator
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import text_calls

_ROLE_LINE = re.compile(r"\n(system|user|assistant)\n")
_CALL = re.compile(r"<use_mcp_tool>(.*?)</use_mcp_tool>", re.DOTALL)
# Shorter answers are contained in too much: "13" in "v1.3-rc8".
_LEAST_SHARED = 4
_TOOL = re.compile(
  r"### Tool name: (?P<name>\S+)\nDescription: (?P<description>.*?)\n"
  r"Input JSON schema: (?P<schema>\{.*?\n\})",
  re.DOTALL,
)


def matches(value: Any) -> bool:
  """Whether a row is a rendered rollout."""
  return isinstance(value, dict) and {"prompt_str", "response_str"} <= set(
    value
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, line, row):
  prompt = records.field(row, "prompt_str", str, "row")
  response = records.field(row, "response_str", str, "row")
  before, *parts = _ROLE_LINE.split(f"\n{prompt}{response}")
  if before.strip():
    raise errors.InputError(
      f"prompt_str: {before.strip()[:60]!r}; expected a line with a role first"
    )
  found: list[types.Message] = []
  for i, (role, said) in enumerate(zip(parts[::2], parts[1::2])):
    if role == "assistant":
      found.append(_turn(said, f"call_{i}", f"messages[{i}]"))
    elif found and found[-1].tool_calls:
      call_id = found[-1].tool_calls[0].id
      found.append(
        types.Message("tool", said.strip("\n"), tool_call_id=call_id)
      )
    else:
      found.append(types.Message(role, said.strip("\n")))
  success = _solved(row, response)
  extra = row.get("extra_info")
  return chat.trajectory(
    file,
    "mirorl",
    line,
    found,
    tools=_tools(prompt),
    task_id=extra.get("index") if isinstance(extra, dict) else None,
    reward=success,
    success=success,
  )


def _turn(said, call_id, place):
  """A reply; one whose call is cut or names no tool stays as context."""
  reasoning, text = chat.split_think(said)
  call, around = text_calls.only(_CALL, text, place)
  name = call and _element(call.group(1), "tool_name")
  if not name:
    cut = "<use_mcp_tool>" in text
    return types.Message(
      "assistant", text.strip(), reasoning=reasoning, context=cut
    )
  made = types.ToolCall(
    name, _element(call.group(1), "arguments") or "{}", call_id
  )
  return types.Message(
    "assistant", around, reasoning=reasoning, tool_calls=(made,)
  )


def _element(text, name):
  match = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
  return match.group(1).strip() if match else None


def _tools(prompt):
  """The schemas that the system text prints as Python literals."""
  tools = []
  for match in _TOOL.finditer(prompt):
    try:
      schema = ast.literal_eval(match["schema"])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
      continue
    tools.append(
      {
        "name": match["name"],
        "description": match["description"],
        "parameters": schema,
      }
    )
  return tools


def _solved(row, response):
  """Whether the last boxed answer is the truth, or one holds the other."""
  truth = row.get("ground_truth")
  if not isinstance(truth, str) or not chat.plain(truth):
    return None
  answers = re.findall(r"\\boxed\{(.*?)\}", response, re.DOTALL)
  given = chat.plain(answers[-1]) if answers else ""
  truth = chat.plain(truth)
  if min(len(given), len(truth)) < _LEAST_SHARED:
    return given == truth
  return given in truth or truth in given
