"""mini-swe-agent `.traj.json`: versions 1 and 2, text actions and tool calls.

A text action, the one code block of a reply, becomes a call `bash(command)`,
as version 2 has it, and the observation its result. A reply that the agent
refused for having no block, or several, stays as context. Version 2 on the
Responses API keeps the API's answers among the messages.
"""

from collections.abc import Iterator
import itertools
import json
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import responses

# The fences and elements that its prompts ask for.
_ACTION = re.compile(
  r"```(?:mswea_bash_command|bash)[ \t]*\n(?P<fenced>.*?)\n?```"
  r"|<mswea_bash_command>(?P<element>.*?)</mswea_bash_command>",
  re.DOTALL,
)
# Keys of a message beside those of a chat: what ran, and what it cost.
_ASIDE = ("extra",)


def matches(value: Any) -> bool:
  """Whether a document is a trajectory of mini-swe-agent, of any version."""
  if not isinstance(value, dict):
    return False
  info = value.get("info")
  return str(value.get("trajectory_format", "")).startswith(
    "mini-swe-agent"
  ) or (isinstance(info, dict) and "mini_version" in info)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a file."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, line, value):
  instance = records.field(value, "instance_id", str, "file", default=None)
  success = _resolved(file, instance)
  return chat.trajectory(
    file,
    "mini_swe_agent",
    line,
    _messages(value),
    tools=file.beside("tools.json") or (),
    task_id=instance,
    reward=success,
    success=success,
  )


def _messages(value: dict[str, Any]) -> list[types.Message]:
  """The chat; the `exit` message closes the file and is none of it."""
  given = records.field(value, "messages", list, "file")
  placed = [
    (f"messages[{i}]", m)
    for i, m in enumerate(given)
    if not isinstance(m, dict) or m.get("role") != "exit"
  ]
  if any(_is_of_responses(m) for _, m in placed):
    return responses.placed(
      itertools.chain.from_iterable(_items(p, m) for p, m in placed)
    )
  found = [
    (chat.message(m, place, also=_ASIDE), m, place) for place, m in placed
  ]
  if any(message.tool_calls for message, _, _ in found):
    return [_refused(message) for message, _, _ in found]
  pattern = _pattern(value)
  chats: list[types.Message] = []
  for message, raw, place in found:
    if message.role == "assistant":
      command = _command(message.content, raw, pattern, place)
      message = _as_call(message, command, pattern, f"text_{len(chats)}")
    elif message.role == "user" and chats and chats[-1].tool_calls:
      if not _extra(raw).get("interrupt_type"):  # The user broke in.
        message = types.Message(
          "tool", message.content, tool_call_id=chats[-1].tool_calls[0].id
        )
    chats.append(message)
  return chats


def _is_of_responses(value):
  return isinstance(value, dict) and (
    value.get("object") == "response"
    or (responses.is_item(value) and value["type"] != "message")
  )


def _items(place, value):
  """Responses items of a message: an answer's own, or the message as one."""
  if isinstance(value, dict) and value.get("object") == "response":
    output = records.field(value, "output", list, place)
    return [(f"{place}.output[{i}]", item) for i, item in enumerate(output)]
  return [(place, value)]


def _refused(message):
  """A reply that calls nothing, which the agent answers with an error."""
  if message.role == "assistant" and not message.tool_calls:
    return chat.as_context(message)
  return message


def _extra(value):
  found = value.get("extra")
  return found if isinstance(found, dict) else {}


def _pattern(value: dict[str, Any]) -> re.Pattern[str]:
  """What finds an action, in the agent's own words if they are recorded."""
  info = records.field(value, "info", dict, "file", default={})
  config = records.field(info, "config", dict, "info", default={})
  for key in ("model", "agent"):
    section = config.get(key)
    own = section.get("action_regex") if isinstance(section, dict) else None
    if isinstance(own, str):
      try:
        return re.compile(own, re.DOTALL)
      except re.error as error:
        raise errors.InputError(
          f"info.config.{key}.action_regex: {own!r}: {error}; expected a"
          " regular expression"
        ) from None
  return _ACTION


def _command(content, raw, pattern, place):
  """The one command of a reply; None if it has none or several."""
  actions = _extra(raw).get("actions")
  if isinstance(actions, list):
    if len(actions) != 1:
      return None
    return records.field(
      actions[0], "command", str, f"{place}.extra.actions[0]"
    )
  found = [_inside(match) for match in pattern.finditer(content)]
  return found[0] if len(found) == 1 else None


def _inside(match):
  return next((g for g in match.groups() if g is not None), match[0]).strip()


def _as_call(message, command, pattern, call_id):
  if command is None:
    return chat.as_context(message)
  block = next(
    (m for m in pattern.finditer(message.content) if _inside(m) == command),
    None,
  )
  content = message.content
  if block is not None:
    content = content[: block.start()].rstrip() + content[block.end() :]
  arguments = json.dumps({"command": command}, ensure_ascii=False)
  return types.Message(
    "assistant",
    content.strip(),
    reasoning=message.reasoning,
    tool_calls=(types.ToolCall("bash", arguments, call_id),),
  )


def _resolved(file, instance):
  """The SWE-bench harness's answer, from `FOLDER.report.json`."""
  report = file.beside(f"{file.folder}.report.json")
  if not isinstance(report, dict) or "resolved_ids" not in report:
    return None
  if instance not in report.get("submitted_ids", [instance]):
    return None
  return instance in report["resolved_ids"]
