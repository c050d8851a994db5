"""WebDancer: ReAct tags in chat JSONL -> native tool calls.

The first user message explains the tag format and lists the tools in front of
the question; only the question is kept, the tools become the schemas.
"""

from collections.abc import Iterator
import json
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import text_calls

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)


def matches(value: Any) -> bool:
  """Whether a row is a ReAct conversation with Qwen-Agent functions."""
  return (
    isinstance(value, dict)
    and isinstance(value.get("messages"), list)
    and isinstance(value.get("functions"), list)
    and any(
      isinstance(tool, dict) and "name_for_model" in tool
      for tool in value["functions"]
    )
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, line, row):
  found: list[types.Message] = []
  tools: list[Any] = []
  for i, message in enumerate(chat.messages(row.get("messages"))):
    place = f"messages[{i}]"
    if message.role == "assistant":
      found.append(_turn(message, f"call_{i}", place))
    elif found and found[-1].tool_calls:
      answer, around = text_calls.only(_RESULT, message.content, place)
      said = filter(None, (answer and answer.group(1).strip(), around))
      call_id = found[-1].tool_calls[0].id
      found.append(types.Message("tool", "\n".join(said), tool_call_id=call_id))
    elif message.role == "user" and "<tools>" in message.content:
      tools = _tools(message.content, place)
      question = message.content.rpartition("\nUser: ")[2].strip()
      found.append(types.Message("user", question))
    else:
      found.append(message)
  return chat.trajectory(
    file, "webdancer", line, found, tools=tools or _functions(row)
  )


def _turn(message, call_id, place):
  """Thinking, then one call or the answer; a cut call stays as context."""
  call, around = text_calls.only(_CALL, message.content, place)
  if call is None:
    answer, around = text_calls.only(_ANSWER, message.content, place)
    said = filter(None, (answer and answer.group(1).strip(), around))
    return types.Message(
      "assistant",
      "\n".join(said),
      reasoning=message.reasoning,
      context=message.context or "<tool_call>" in around,
    )
  try:
    value = json.loads(call.group(1))
  except (ValueError, RecursionError) as error:
    raise errors.InputError(
      f"{place}: tool_call is not JSON: {error}"
    ) from None
  made = types.ToolCall(
    name=records.field(value, "name", str, place),
    arguments=chat.arguments_text(value.get("arguments")),
    id=call_id,
  )
  return types.Message(
    "assistant",
    around,
    reasoning=message.reasoning,
    tool_calls=(made,),
    context=message.context,
  )


def _tools(content, place):
  block = _TOOLS.search(content)
  if block is None:
    return []
  try:
    return json.loads(f"[{block.group(1)}]")
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f"{place}: <tools> is not JSON: {error}") from None


def _functions(row):
  return [
    {
      "name": records.field(tool, "name_for_model", str, "functions"),
      "description": tool.get("description_for_model", ""),
      "parameters": tool.get("parameters", {}),
    }
    for tool in records.field(row, "functions", list, "row")
  ]
