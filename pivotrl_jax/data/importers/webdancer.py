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
      answer = _RESULT.search(message.content)
      found.append(
        types.Message(
          "tool",
          answer.group(1).strip() if answer else message.content,
          tool_call_id=found[-1].tool_calls[0].id,
        )
      )
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
  """Thinking, then one call or the answer."""
  call = _CALL.search(message.content)
  if call is None:
    answer = _ANSWER.search(message.content)
    text = answer.group(1).strip() if answer else message.content
    return types.Message("assistant", text, reasoning=message.reasoning)
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
    message.content[: call.start()].strip(),
    reasoning=message.reasoning,
    tool_calls=(made,),
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
    for tool in row["functions"]
  ]
