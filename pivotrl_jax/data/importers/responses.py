"""OpenAI Responses items <-> chat messages, as NeMo Gym rows have them."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat


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
  found: list[types.Message] = []
  turn: _Turn | None = None
  for i, item in enumerate(items):
    here = f"{place}[{i}]"
    kind = _kind(item, here)
    if kind in ("reasoning", "assistant", "function_call"):
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
      f"{place}: {kind!r}; expected one of {', '.join(_KINDS)}"
    )
  return kind


_KINDS = (
  "system",
  "user",
  "assistant",
  "tool",
  "reasoning",
  "function_call",
  "function_call_output",
)


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
    turn.calls.append(
      types.ToolCall(
        name=records.field(item, "name", str, place),
        arguments=chat.arguments_text(item.get("arguments")),
        id=records.field(item, "call_id", str, place, default=None),
      )
    )


def _close(found: list[types.Message], turn: _Turn | None) -> None:
  if turn is not None:
    found.append(turn.message())


def _said_to_model(
  kind: str, item: dict[str, Any], place: str
) -> types.Message:
  if kind != "function_call_output":
    return types.Message(
      kind,
      chat.text(item.get("content"), f"{place}.content"),
      tool_call_id=item.get("tool_call_id"),
    )
  output = item.get("output")
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
