"""SWE-smith: SWE-agent `.traj` files, and SFT rows with calls as XML text.

In the rows the tools are spelled out in the system prompt; they become
schemas, each `<function=NAME>` a native call, the observation its result.
"""

from collections.abc import Iterator
import dataclasses
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import markup
from pivotrl_jax.data.importers import swe_agent

_TOOLS_START = "\n\nYou have access to the following functions:"
_TOOL = re.compile(
  r"---- BEGIN FUNCTION #\d+: (\S+) ----\nDescription: (.*?)"
  r"---- END FUNCTION",
  re.DOTALL,
)
_TOOL_PARAMETER = re.compile(
  r"^  \(\d+\) (\w+) \((\w+), (required|optional)\): (.*)$", re.MULTILINE
)


def matches(value: Any) -> bool:
  """Whether a row is XML chat, or a document a SWE-agent trajectory."""
  return _is_xml_chat(value) or swe_agent.matches(value)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row or file."""
  for line, value in file.rows():
    build = _trajectory if _is_xml_chat(value) else swe_agent.trajectory
    yield chat.one_row(file, line, value, build)


def _is_xml_chat(value):
  return (
    isinstance(value, dict)
    and isinstance(value.get("messages"), list)
    and any(
      isinstance(m, dict)
      and m.get("role") == "assistant"
      and isinstance(m.get("content"), str)
      and "<tool_call>" not in m["content"]
      and markup.FUNCTION.search(m["content"])
      for m in value["messages"]
    )
  )


def _trajectory(file, line, row):
  found: list[types.Message] = []
  tools: list[dict[str, Any]] = []
  for i, message in enumerate(chat.messages(row.get("messages"))):
    if message.role == "system":
      tools = _tools(message.content)
      text = message.content.partition(_TOOLS_START)[0]
      found.append(types.Message("system", text))
    elif message.role == "assistant":
      found.append(_turn(message, tools, f"call_{i}"))
    elif found and found[-1].tool_calls:
      call_id = found[-1].tool_calls[0].id
      found.append(types.Message("tool", message.content, tool_call_id=call_id))
    else:
      found.append(message)
  instance = records.field(row, "instance_id", str, "row", default=None)
  success = chat.reported(file, f"{instance}.report.json")
  return chat.trajectory(
    file,
    "swe_smith",
    instance or line,
    found,
    tools=tools,
    task_id=instance,
    reward=success,
    success=success,
  )


def _turn(message, tools, call_id):
  """A reply; one whose call is cut off stays as context."""
  kinds = {tool["name"]: tool["parameters"] for tool in tools}
  text, calls = markup.function_calls(
    message.content,
    call_id,
    lambda name, given: markup.typed(given, kinds.get(name)),
  )
  if len(calls) > 1:
    raise errors.InputError(
      f"{call_id}: {len(calls)} calls in one reply; expected one"
    )
  if not calls and "<function=" in text:
    return chat.as_context(message)
  made = tuple(dataclasses.replace(call, id=call_id) for call in calls)
  return dataclasses.replace(message, content=text, tool_calls=made)


def _tools(system):
  tools = []
  for name, body in _TOOL.findall(system):
    description = body.partition("\n\nParameters:")[0].strip()
    parameters = _TOOL_PARAMETER.findall(body)
    tools.append(
      {
        "name": name,
        "description": description,
        "parameters": {
          "type": "object",
          "properties": {
            key: {"type": kind, "description": said}
            for key, kind, _, said in parameters
          },
          "required": [k for k, _, need, _ in parameters if need == "required"],
        },
      }
    )
  return tools
