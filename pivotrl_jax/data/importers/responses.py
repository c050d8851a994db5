"""OpenAI Responses items <-> chat messages; rows of `input` and `output`.

NeMo Gym's rows and Codex's rollouts are made of the same items.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known
from pivotrl_jax.data.importers import openai

# Kind of item -> its keys that are read. A hosted tool (a web search) is no
# kind of them: what its call gave back is not in the items.
_MESSAGE = ("role", "content", "tool_call_id")
_RESULT = ("call_id", "output")
_KINDS = {
  "system": _MESSAGE,
  "user": _MESSAGE,
  "assistant": _MESSAGE,
  "tool": _MESSAGE,
  "reasoning": ("summary", "content"),
  "function_call": ("call_id", "name", "arguments"),
  "custom_tool_call": ("call_id", "name", "input"),
  "local_shell_call": ("call_id", "action"),
  "function_call_output": _RESULT,
  "custom_tool_call_output": _RESULT,
  "local_shell_call_output": _RESULT,
}
_OF_A_TURN = (
  "reasoning",
  "assistant",
  "function_call",
  "custom_tool_call",
  "local_shell_call",
)
# Columns of a row that are read; `request` may hold all but the answer's.
_COLUMNS = (
  "input", "output", "instructions", "tools", "request", "response", "task_id",
)  # fmt: skip
# Keys of items that are no text of the chat.
_ASIDE = (
  "type", "phase", "extra", "namespace", "prompt_token_ids",
  "generation_token_ids", "generation_log_probs",
  "internal_chat_message_metadata_passthrough",
)  # fmt: skip


def is_item(value: Any) -> bool:
  """Whether `value` is an item, and no message of another API."""
  if not isinstance(value, dict):
    return False
  kind = value.get("type")
  if kind == "message":
    return isinstance(value.get("role"), str)
  return isinstance(kind, str) and kind in _KINDS and kind not in types.ROLES


def matches(value: Any) -> bool:
  """Whether a row is a request's items, and those that followed it if any."""
  if isinstance(value, list):
    return any(is_item(item) and item["type"] != "message" for item in value)
  return isinstance(value, dict) and (
    any(is_item(item) for item in _output(value))
    or (isinstance(value.get("input"), list) and matches(value["input"]))
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row; the columns that say something else, once a file."""
  unread: dict[str, None] = {}
  for place, row in file.rows():
    found = chat.one_row(file, place, row, _trajectory)
    yield found
    if isinstance(found, files.Skip) or isinstance(row, list):
      continue
    for key, held in row.items():
      taken = key in (*_COLUMNS, *openai.OUTCOMES) or key in known.COLUMNS
      if known.is_content(held) and not taken:
        unread[key] = None
  if unread:
    yield files.Skip(file.name, None, f"columns not read: {', '.join(unread)}")


def _output(row):
  """What followed the request: the row's items, or its API answer's."""
  answer = row.get("response")
  found = (answer if isinstance(answer, dict) else row).get("output")
  return found if isinstance(found, list) else []


def _trajectory(file, line, row):
  if isinstance(row, list):
    return chat.trajectory(file, "responses", line, messages(row, "row"))
  request = records.field(row, "request", dict, "row", default=row)
  seen = messages(request.get("input") or [], "input")
  instructions = records.field(
    request, "instructions", str, "row", default=None
  )
  if instructions:
    seen.insert(0, types.Message("system", instructions))
  if not seen:
    raise errors.InputError("input: empty; expected what the model saw")
  reward, success = openai.outcome(row)
  return chat.trajectory(
    file,
    "responses",
    line if row.get("id") is None else row["id"],
    [*seen, *messages(_output(row), "output")],
    tools=request.get("tools") or (),
    task_id=row.get("task_id"),
    reward=reward,
    success=success,
  )


@dataclasses.dataclass
class _Turn:
  """An assistant turn that is still growing."""

  reasoning: list[str] = dataclasses.field(default_factory=list)
  content: list[str] = dataclasses.field(default_factory=list)
  calls: list[types.ToolCall] = dataclasses.field(default_factory=list)

  def message(self) -> types.Message:
    thought, content = chat.split_think("\n".join(self.content))
    return types.Message(
      "assistant",
      content,
      reasoning="\n".join(self.reasoning) or thought,
      tool_calls=tuple(self.calls),
    )


def messages(items: Any, place: str = "input") -> list[types.Message]:
  """Chat messages of items; a string is one user message.

  Reasoning, then a message, then calls are one assistant turn, until
  something else follows. Some logs write the thinking after the call it led
  to: before that call's output it still belongs to the turn.

  Raises:
    errors.InputError: an item of no known kind.
  """
  if isinstance(items, str):
    return [types.Message("user", items)]
  if not isinstance(items, list):
    raise errors.InputError(f"{place}: {items!r:.80}; expected a list")
  return placed((f"{place}[{i}]", item) for i, item in enumerate(items))


def placed(items: Iterable[tuple[str, Any]]) -> list[types.Message]:
  """`messages` of items that come with their places."""
  found: list[types.Message] = []
  turn: _Turn | None = None
  for here, item in items:
    kind = _kind(item, here)
    if kind in _OF_A_TURN:
      if turn is None or _starts_another(turn, kind):
        _close(found, turn)
        turn = _Turn()
      _grow(turn, kind, item, here)
    else:
      _close(found, turn)
      turn = None
      found.append(_said_to_model(kind, item, here))
  _close(found, turn)
  return found


def items(found: Iterable[types.Message]) -> list[dict[str, Any]]:
  """The items of a request; ids are numbered by message.

  Of an assistant turn first its reasoning, then its text, then its calls.
  """
  made: list[dict[str, Any]] = []
  for i, message in enumerate(found):
    if message.role == "assistant":
      made += _assistant_items(i, message)
    elif message.role == "tool":
      made.append(
        {
          "type": "function_call_output",
          "call_id": message.tool_call_id or f"call_{i}",
          "output": message.content,
        }
      )
    else:
      made.append(
        {
          "role": message.role,
          "content": message.content,
          "type": "message",
        }
      )
  return made


def flat_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Tools as the Responses API has them: the function's keys on top."""
  return [{"type": "function", **tool["function"]} for tool in tools]


def _kind(item: Any, place: str) -> str:
  kind = records.field(item, "type", str, place, default="message")
  if kind == "message":
    role = records.field(item, "role", str, place)
    kind = "system" if role == "developer" else role
  if kind not in _KINDS:
    raise errors.InputError(
      f"{place}.type: {kind!r}; expected one of {', '.join(_KINDS)}"
    )
  known.refuse_others(item, place, _KINDS[kind], _ASIDE, known.METADATA)
  return kind


def _starts_another(turn: _Turn, kind: str) -> bool:
  if kind == "assistant":
    return bool(turn.content or turn.calls)
  return kind == "reasoning" and bool(turn.content) and not turn.calls


def _grow(turn: _Turn, kind: str, item: dict[str, Any], place: str) -> None:
  if kind == "reasoning":
    for key in ("summary", "content"):
      text = chat.text(item.get(key), f"{place}.{key}")
      if text:
        turn.reasoning.append(text)
  elif kind == "assistant":
    turn.content.append(chat.text(item.get("content"), f"{place}.content"))
  else:
    turn.calls.append(_call(kind, item, place))


def _call(kind: str, item: dict[str, Any], place: str) -> types.ToolCall:
  """A call; a custom tool's free text and a shell's action as arguments."""
  own_id = records.field(item, "call_id", str, place, default=None)
  if own_id is None:
    own_id = records.field(item, "id", str, place, default=None)
  if kind == "local_shell_call":
    action = records.field(item, "action", dict, place)
    given = {k: v for k, v in action.items() if k != "type" and v is not None}
    return types.ToolCall("local_shell", chat.arguments_text(given), own_id)
  name = records.field(item, "name", str, place)
  given = item.get("arguments")
  if kind == "custom_tool_call":
    given = {"input": records.field(item, "input", str, place)}
  return types.ToolCall(name, chat.arguments_text(given), own_id)


def _close(found: list[types.Message], turn: _Turn | None) -> None:
  if turn is not None:
    found.append(turn.message())


def _said_to_model(
  kind: str, item: dict[str, Any], place: str
) -> types.Message:
  if not kind.endswith("_output"):
    return types.Message(
      kind,
      chat.text(item.get("content"), f"{place}.content"),
      tool_call_id=records.field(
        item, "tool_call_id", str, place, default=None
      ),
    )
  output = item.get("output")
  if isinstance(output, dict) and isinstance(output.get("content"), str):
    output = output["content"]  # Codex, of a failed call, with `success`.
  if not isinstance(output, (str, list, type(None))):
    output = json.dumps(output, ensure_ascii=False)
  return types.Message(
    "tool",
    chat.text(output, f"{place}.output"),
    tool_call_id=records.field(item, "call_id", str, place, default=None),
  )


def _assistant_items(i: int, message: types.Message) -> list[dict[str, Any]]:
  made: list[dict[str, Any]] = []
  if message.reasoning:
    summary = [{"type": "summary_text", "text": message.reasoning}]
    made.append({"id": f"rs_{i}", "summary": summary, "type": "reasoning"})
  if message.content or not message.tool_calls:
    part = {"annotations": [], "text": message.content, "type": "output_text"}
    made.append(
      {
        "id": f"msg_{i}",
        "content": [part],
        "role": "assistant",
        "status": "completed",
        "type": "message",
      }
    )
  for n, call in enumerate(message.tool_calls):
    call_id = call.id or f"call_{i}_{n}"
    made.append(
      {
        "arguments": call.arguments,
        "call_id": call_id,
        "name": call.name,
        "type": "function_call",
        "id": call_id,
        "status": "completed",
      }
    )
  return made
