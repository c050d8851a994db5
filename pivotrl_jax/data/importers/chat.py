"""What the importers share: chat messages, tools and trajectories.

A malformed value raises InputError with its place inside the row; the driver
turns that into a `Skip` of the row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import json
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import files

_ROLES = {"developer": "system", "function": "tool"}
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def each_row(
  file: files.File,
  build: Callable[[files.File, int | None, Any], types.Trajectory],
) -> Iterator[types.Trajectory | files.Skip]:
  """`build(file, line, row)` of every row; a malformed one is skipped."""
  for line, row in file.rows():
    yield attempt(file, line, build, file, line, row)


def attempt(
  file: files.File,
  where: Any,
  build: Callable[..., types.Trajectory],
  *arguments: Any,
) -> types.Trajectory | files.Skip:
  """`build(*arguments)`, or why it could not be; `where` names the place."""
  try:
    return build(*arguments)
  except errors.InputError as error:
    place = None if where is None else str(where)
    return files.Skip(file.name, place, str(error))


def trajectory(
  file: files.File,
  format_name: str,
  native_id: Any,
  messages: Sequence[types.Message],
  *,
  tools: Any = (),
  task_id: Any = None,
  reward: float | None = None,
  success: bool | None = None,
  extra: dict[str, Any] | None = None,
) -> types.Trajectory:
  """The record, with an id that is the file's and the source's own.

  Raises:
    errors.InputError: no assistant turn in it, or malformed tools.
  """
  messages = greeting_as_context(messages)
  if not any(m.role == "assistant" and not m.context for m in messages):
    raise errors.InputError("messages: no assistant turn")
  own_id = file.stem if native_id is None else f"{file.stem}:{native_id}"
  return types.Trajectory(
    id=own_id,
    domain="",
    source=f"{format_name}:{file.name}",
    task_id=own_id if task_id is None else str(task_id),
    reward=None if reward is None else float(reward),
    success=success,
    tools=wrap_tools(tools),
    messages=tuple(messages),
    extra=extra or {},
  )


def message(value: Any, place: str) -> types.Message:
  """An OpenAI chat message, in the variants that agents log.

  `content` may be null or a list of parts, arguments an object; the thinking
  is `reasoning_content`, `reasoning` or a leading `<think>` block.
  """
  role = records.field(value, "role", str, place)
  role = _ROLES.get(role, role)
  if role not in types.ROLES:
    raise errors.InputError(
      f"{place}.role: {role!r}; expected one of {', '.join(types.ROLES)}"
    )
  content = text(value.get("content"), f"{place}.content")
  if role != "assistant":
    return types.Message(role, content, tool_call_id=_call_id(value, place))
  reasoning = text(
    value.get("reasoning_content") or value.get("reasoning"),
    f"{place}.reasoning",
  )
  thought, content = split_think(content)
  calls = records.field(value, "tool_calls", list, place, default=[])
  return types.Message(
    role,
    content,
    reasoning=reasoning or thought,
    tool_calls=tuple(
      tool_call(call, f"{place}.tool_calls[{i}]")
      for i, call in enumerate(calls)
    ),
    context=value.get("weight") == 0,
  )


def messages(values: Any, place: str = "messages") -> list[types.Message]:
  """A list of `message`."""
  if not isinstance(values, list):
    raise errors.InputError(f"{place}: {values!r:.80}; expected a list")
  return [message(value, f"{place}[{i}]") for i, value in enumerate(values)]


def tool_call(value: Any, place: str) -> types.ToolCall:
  """A call as OpenAI nests it, or flat: `name` and `arguments` on top."""
  inner = value
  if isinstance(value, dict) and "function" in value:
    inner = value["function"]
  return types.ToolCall(
    name=records.field(inner, "name", str, place),
    arguments=arguments_text(inner.get("arguments")),
    id=records.field(value, "id", str, place, default=None),
  )


def arguments_text(value: Any) -> str:
  """Arguments as the JSON text that a model would write."""
  if isinstance(value, str):
    return value
  return json.dumps({} if value is None else value, ensure_ascii=False)


def text(value: Any, place: str) -> str:
  """A string, null as "", or the texts of a list of parts, a line each."""
  if value is None:
    return ""
  if isinstance(value, str):
    return value
  if not isinstance(value, list):
    raise errors.InputError(
      f"{place}: {value!r:.80}; expected a string or a list of parts"
    )
  parts = [
    part if isinstance(part, str) else part.get("text")
    for part in value
    if isinstance(part, (str, dict))
  ]
  return "\n".join(part for part in parts if isinstance(part, str))


def split_think(content: str) -> tuple[str | None, str]:
  """`(thinking, rest)` of text that starts with a `<think>` block."""
  match = _THINK.match(content)
  if match is None:
    return None, content
  return match.group(1).strip(), content[match.end() :]


def wrap_tools(tools: Any, place: str = "tools") -> tuple[dict[str, Any], ...]:
  """OpenAI function schemas of nested or flat ones."""
  if not isinstance(tools, (list, tuple)):
    raise errors.InputError(f"{place}: {tools!r:.80}; expected a list")
  return tuple(_wrap(tool, f"{place}[{i}]") for i, tool in enumerate(tools))


def _wrap(tool: Any, place: str) -> dict[str, Any]:
  if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
    return tool
  records.field(tool, "name", str, place)
  flat = {key: value for key, value in tool.items() if key != "type"}
  return {"type": "function", "function": flat}


def greeting_as_context(
  messages: Iterable[types.Message],
) -> tuple[types.Message, ...]:
  """Marks the agent's canned opening: text before any user has spoken."""
  messages = tuple(messages)
  first = next((i for i, m in enumerate(messages) if m.role != "system"), None)
  if first is None:
    return messages
  opening = messages[first]
  users = any(m.role == "user" for m in messages[first:])
  if opening.role != "assistant" or opening.tool_calls or not users:
    return messages
  return (*messages[:first], as_context(opening), *messages[first + 1 :])


def as_context(value: types.Message) -> types.Message:
  """The same message, never to become a candidate."""
  return types.Message(
    value.role, value.content, value.reasoning, value.tool_calls, context=True
  )


def reported(file: files.File, name: str) -> bool | None:
  """`resolved` of a SWE-bench style report beside the data file."""
  report = file.beside(name) or {}
  return records.field(report, "resolved", bool, name, default=None)


def plain(value: str) -> str:
  """Letters and digits of `value` in lower case."""
  return "".join(c for c in value.lower() if c.isalnum())


def _call_id(value: dict[str, Any], place: str) -> str | None:
  ids = value.get("tool_call_ids")
  if isinstance(ids, list) and ids:
    return str(ids[0])
  return records.field(value, "tool_call_id", str, place, default=None)
