"""What the importers share: chat messages, tools and trajectories.

A malformed value, or one with content that no record would hold (`known`),
raises InputError with its place inside the row; `each_row` and `attempt` turn
that into a `Skip` of the row.
"""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Sequence,
)
import dataclasses
import json
import math
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known

_ROLES = {"developer": "system", "function": "tool"}
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_END_THINK = "</think>"
# Where parts of a list of contents have their text, and what they are.
_TEXT_KEYS = ("text", "value", "thinking", "reasoning")
_TEXT_PARTS = (None, "text", "input_text", "output_text", "summary_text")
THOUGHT_PARTS = ("thinking", "reasoning", "reasoning.text", "reasoning_text")
# Where logs write the thinking of a turn; equal ones are one.
REASONING_KEYS = (
  "reasoning_content", "reasoning", "thinking", "thinking_blocks",
  "reasoning_details",
)  # fmt: skip
# Where a call has its name, its arguments and its id.
_CALL_NAMES = ("name", "tool", "tool_name", "function_name")
_CALL_ARGUMENTS = (
  "arguments", "args", "parameters", "input", "kwargs", "tool_input",
  "tool_arguments",
)  # fmt: skip
_CALL_IDS = ("id", "call_id", "tool_call_id", "tool_use_id")
_CALL_TYPES = (None, "function", "function_call", "tool_call", "tool_use")


def each_row(
  file: files.File,
  build: Callable[[files.File, int | None, Any], types.Trajectory],
) -> Iterator[types.Trajectory | files.Skip]:
  """`build(file, place, row)` of every row; a malformed one is skipped."""
  for place, row in file.rows():
    yield one_row(file, place, row, build)


def one_row(
  file: files.File,
  place: files.Place,
  row: Any,
  build: Callable[[files.File, files.Place, Any], types.Trajectory],
) -> types.Trajectory | files.Skip:
  """A row's trajectory, or why there is none."""
  if isinstance(row, files.Skip):
    return row
  reason = file.foreign(row)
  if reason is not None:
    return files.Skip(file.name, None if place is None else str(place), reason)
  return attempt(file, place, build, file, place, row)


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
  except RecursionError:
    place = None if where is None else str(where)
    return files.Skip(file.name, place, "nested too deep")


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
  if reward is not None and not math.isfinite(reward):
    raise errors.InputError(f"reward: {reward}; expected a finite number")
  turns = [m for m in messages if m.role == "assistant" and not m.context]
  if not turns:
    raise errors.InputError("messages: no assistant turn")
  if all(types.says_nothing(m) for m in turns):
    raise errors.InputError("messages: only empty assistant turns")
  own = file.stem if native_id is None else f"{file.stem}:{native_id}"
  return types.Trajectory(
    id=own,
    domain="",
    source=f"{format_name}:{file.name}",
    task_id=own if task_id is None else str(task_id),
    reward=None if reward is None else float(reward),
    success=success,
    tools=wrap_tools(tools),
    messages=tuple(messages),
    extra=extra or {},
  )


def message(
  value: Any, place: str, *, also: Collection[str] = ()
) -> types.Message:
  """An OpenAI chat message, in the variants that agents log.

  `content` may be null or a list of parts, arguments an object; the thinking
  is one of `REASONING_KEYS` or a leading `<think>` block.

  Args:
    value, place: what is read, and where it is in its row.
    also: further keys that the format leaves out knowingly.
  """
  role = records.field(value, "role", str, place)
  role = _ROLES.get(role, role)
  if role not in types.ROLES:
    raise errors.InputError(
      f"{place}.role: {role!r}; expected one of {', '.join(types.ROLES)}"
    )
  base = ("role", "content", "type")
  content = text(value.get("content"), f"{place}.content")
  if role != "assistant":
    ids = ("tool_call_id", "tool_call_ids") if role == "tool" else ()
    known.refuse_others(
      value, place, base, ids, also, known.METADATA, known.MARKS
    )
    return types.Message(role, content, tool_call_id=_call_id(value, place))
  known.refuse_others(
    value, place, base, ("tool_calls",), REASONING_KEYS, also,
    known.METADATA, known.MARKS,
  )  # fmt: skip
  thought, content = split_think(content)
  calls = records.field(value, "tool_calls", list, place, default=[])
  return types.Message(
    role,
    content,
    reasoning=join(reasoning(value, place), thought),
    tool_calls=tuple(
      tool_call(call, f"{place}.tool_calls[{i}]")
      for i, call in enumerate(calls)
    ),
    context=untrained(value, place),
  )


def messages(
  values: Any, place: str = "messages", *, also: Collection[str] = ()
) -> list[types.Message]:
  """A list of `message`."""
  if not isinstance(values, list):
    raise errors.InputError(f"{place}: {values!r:.80}; expected a list")
  return [
    message(value, f"{place}[{i}]", also=also) for i, value in enumerate(values)
  ]


def reasoning(value: dict[str, Any], place: str) -> str | None:
  """The thinking that a message has under keys of its own; None if none."""
  found = [
    text(value[key], f"{place}.{key}", kinds=(*_TEXT_PARTS, *THOUGHT_PARTS))
    for key in REASONING_KEYS
    if known.is_content(value.get(key))
  ]
  return join(*dict.fromkeys(found))


def join(*parts: str | None) -> str | None:
  """The parts that say something, a line each; None if none does."""
  return "\n".join(part for part in parts if part) or None


def untrained(value: dict[str, Any], place: str) -> bool:
  """Whether a mark says that a message is not to be learnt from."""
  for key in known.MARKS:
    mark = value.get(key)
    if not isinstance(mark, (bool, int, float, type(None))):
      raise errors.InputError(
        f"{place}.{key}: {mark!r:.60}; expected true, false or a weight"
      )
    if mark is not None and mark <= 0:
      return True
  return False


def tool_call(
  value: Any,
  place: str,
  *,
  given: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None,
) -> types.ToolCall:
  """A call as OpenAI nests it, or flat, under the names that logs give it.

  Args:
    value, place: what is read, and where it is in its row.
    given: makes of a name and arguments that are an object those that the
      call had; all of them if it is not given.
  """
  value = parsed(value, place)
  inner = value
  nested = isinstance(value, dict) and known.is_content(value.get("function"))
  if nested:
    inner = parsed(value["function"], f"{place}.function")
    if isinstance(inner, str):  # The function's name alone.
      inner = {**value, "name": inner}
      nested = False
  if not isinstance(inner, dict):
    raise errors.InputError(
      f"{place}: {inner!r:.80}; expected an object with name and arguments"
    )
  if value.get("type") not in _CALL_TYPES:
    raise errors.InputError(f"{place}.type: {value['type']!r}; not a function")
  if nested:
    known.refuse_others(
      value, place, ("function", "type"), _CALL_IDS, known.METADATA
    )
  known.refuse_others(
    inner, place, ("function", "type"), _CALL_NAMES, _CALL_ARGUMENTS,
    _CALL_IDS, known.METADATA,
  )  # fmt: skip
  name = one_of(inner, _CALL_NAMES, place)
  if not isinstance(name, str) or not name:
    raise errors.InputError(f"{place}.name: {name!r:.80}; expected a name")
  arguments = one_of(inner, _CALL_ARGUMENTS, place)
  if isinstance(arguments, dict) and given is not None:
    arguments = given(name, arguments)
  return types.ToolCall(
    name=name,
    arguments=arguments_text(arguments, f"{place}.arguments"),
    id=own_id(one_of(value, _CALL_IDS, place), f"{place}.id"),
  )


def one_of(value: dict[str, Any], keys: Sequence[str], place: str) -> Any:
  """What is under one of `keys`; None if under none.

  Raises:
    errors.InputError: two of them have content, and not the same.
  """
  found = {k: value[k] for k in keys if value.get(k) not in (None, "", [], {})}
  if not found:
    return next((value[k] for k in keys if value.get(k) is not None), None)
  (key, first), *others = found.items()
  for other, second in others:
    if second != first:
      raise errors.InputError(
        f"{place}: both {key} and {other}; expected one of them"
      )
  return first


def own_id(value: Any, place: str) -> str | None:
  """An id as text; a number is one, an empty text is none."""
  if value is None or value == "":
    return None
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise errors.InputError(
      f"{place}: {value!r:.80}; expected a text or a number"
    )
  return str(value)


def parsed(value: Any, place: str) -> Any:
  """What JSON text of an object or a list holds; other values as they are.

  Tables cannot hold objects of many kinds, so they hold their text.
  """
  if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
    return value
  return records.decode(value.encode("utf-8", "surrogatepass"), place)


def arguments_text(value: Any, place: str = "arguments") -> str:
  """Arguments as the JSON text that a model would write; "{}" for none.

  An object that was made JSON text twice is taken out of the outer text.
  """
  if value is None or (isinstance(value, str) and not value.strip()):
    return "{}"
  if isinstance(value, str):
    if not (value.lstrip().startswith('"') and records.is_json(value)):
      return value
    inner = json.loads(value)
    is_object = inner.lstrip().startswith("{") and records.is_json(inner)
    return inner if is_object else value
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{place}: {value!r:.80}; expected an object or its JSON text"
    )
  return json.dumps(value, ensure_ascii=False)


def text(
  value: Any, place: str, *, kinds: Collection[str | None] = _TEXT_PARTS
) -> str:
  """A string, null as "", or the texts of a list of parts, a line each.

  Args:
    value, place: what is read, and where it is in its row.
    kinds: the types of parts that are text here.

  Raises:
    errors.InputError: another part, by its place and kind.
  """
  if value is None:
    return ""
  if isinstance(value, str):
    return value
  if not isinstance(value, list):
    raise errors.InputError(
      f"{place}: {value!r:.80}; expected a string or a list of parts"
    )
  return "\n".join(
    part_text(part, f"{place}[{i}]", kinds=kinds)
    for i, part in enumerate(value)
  )


def part_text(
  part: Any, place: str, *, kinds: Collection[str | None] = _TEXT_PARTS
) -> str:
  """The text of one part of a list of contents."""
  if isinstance(part, str):
    return part
  if not isinstance(part, dict):
    raise errors.InputError(f"{place}: {part!r:.60}; expected a part")
  kind = part.get("type")
  if kind not in kinds:
    named = "image part" if "image" in str(kind) else f"part of type {kind!r}"
    raise errors.InputError(f"{place}: {named}; expected text")
  known.refuse_others(part, place, _TEXT_KEYS, ("type",), known.METADATA)
  found = one_of(part, _TEXT_KEYS, place)
  if not isinstance(found, (str, type(None))):
    raise errors.InputError(f"{place}: {found!r:.60}; expected text")
  return found or ""


def split_think(content: str) -> tuple[str | None, str]:
  """`(thinking, rest)` of text that starts with a `<think>` block.

  Where the prompt opened the block, the text only closes it. A JSON object is
  content, whatever its strings hold.
  """
  match = _THINK.match(content)
  if match is not None:
    return match.group(1).strip(), content[match.end() :]
  if _END_THINK in content and "<think>" not in content:
    if not content.lstrip().startswith("{"):
      thought, _, rest = content.rpartition(_END_THINK)
      return thought.strip(), rest.lstrip()
  return None, content


def wrap_tools(
  tools: Any,
  place: str = "tools",
  *,
  kept: Collection[str] = ("default", "const"),
) -> tuple[dict[str, Any], ...]:
  """OpenAI function schemas of nested, flat or Anthropic ones, or their text.

  Args:
    tools, place: what is read, and where it is in its row.
    kept: keys of a schema that may be null; others with null are none, since
      tables fill them in.
  """
  tools = parsed(tools, place)
  if isinstance(tools, dict) and known.is_content(_schema_name(tools)):
    tools = [tools]
  if not isinstance(tools, (list, tuple)):
    raise errors.InputError(f"{place}: {tools!r:.80}; expected a list")
  return tuple(
    without_nulls(_wrap(tool, f"{place}[{i}]"), kept)
    for i, tool in enumerate(tools)
    if tool is not None
  )


def _schema_name(tool):
  return tool.get("name") or tool.get("function")


def _wrap(tool: Any, place: str) -> dict[str, Any]:
  tool = parsed(tool, place)
  if not isinstance(tool, dict):
    raise errors.InputError(
      f"{place}: {tool!r:.80}; expected a function schema"
    )
  nested = known.is_content(tool.get("function"))
  if nested:
    inner = parsed(tool["function"], f"{place}.function")
  else:
    inner = {key: value for key, value in tool.items() if key != "type"}
  records.field(inner, "name", str, place)
  schema = one_of(inner, ("parameters", "input_schema", "inputSchema"), place)
  schema = parsed(schema, f"{place}.parameters")
  if not isinstance(schema, (dict, type(None))):
    raise errors.InputError(
      f"{place}.parameters: {schema!r:.80}; expected a JSON schema"
    )
  function = {
    {"input_schema": "parameters", "inputSchema": "parameters"}.get(k, k): v
    for k, v in inner.items()
  }
  if schema is not None:
    function["parameters"] = schema
  outer = {**tool} if nested else {"type": "function"}
  return {**outer, "function": function}


def without_nulls(value: Any, kept: Collection[str]) -> Any:
  """A schema without its null keys, but for those in `kept`."""
  if isinstance(value, list):
    return [without_nulls(element, kept) for element in value]
  if not isinstance(value, dict):
    return value
  return {
    key: without_nulls(found, kept)
    for key, found in value.items()
    if found is not None or key in kept
  }


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
  return dataclasses.replace(value, context=True)


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
  return own_id(value.get("tool_call_id"), f"{place}.tool_call_id")
