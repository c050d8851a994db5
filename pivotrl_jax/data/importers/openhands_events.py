"""OpenHands V1 conversations: events of the agent SDK, each with its `kind`.

Actions of one model response are one turn. After a condensation the model
sees the history without the forgotten events and with the summary: that view
begins another trajectory, in which the turns it keeps are context.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import events
from pivotrl_jax.data.importers import files

_RESULTS = ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation")
_SEEN = (
  "SystemPromptEvent",
  "MessageEvent",
  "ActionEvent",
  "CondensationSummaryEvent",
  *_RESULTS,
)
# Kinds that the model never sees.
_ASIDE = (
  "CondensationRequest", "ConversationErrorEvent",
  "ConversationIterationLimitEvent", "ConversationStateUpdateEvent",
  "HookExecutionEvent", "InterruptEvent", "LLMCompletionLogEvent",
  "PauseEvent", "StreamingDeltaEvent", "TokenEvent", "WarningEvent",
)  # fmt: skip
_CONDENSED = "Condensation"
# Keys that only an event of the chat has.
_SPEAKING = ("llm_message", "tool_call", "observation", "system_prompt")
_KEYS = (
  "id", "timestamp", "source", "kind", "system_prompt", "tools",
  "dynamic_context", "llm_message", "llm_response_id", "extended_content",
  "thought", "reasoning_content", "thinking_blocks", "tool_call",
  "responses_reasoning_item", "tool_name", "tool_call_id", "action",
  "action_id", "observation", "error", "rejection_reason", "summary",
  # No text of the chat.
  "activated_skills", "activated_microagents", "sender", "critic_result",
  "reasoning_details", "security_risk", "rejection_source", "classification",
  "metrics",
)  # fmt: skip


@dataclasses.dataclass
class _View:
  """What the model sees: events, the first `kept` of an earlier view."""

  seen: list[events.Event]
  kept: int = 0


def matches(value: Any) -> bool:
  """Whether a row is an event, or holds a list of them."""
  return events.holds(value, _is_event)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a conversation, and another after each condensation."""
  return events.read(file, _is_event, _log)


def _log(log, unread):
  for n, view in enumerate(_views(log, unread)):
    place = view.seen[0].place if view.seen else log.name
    yield chat.attempt(
      log.file, place, _trajectory, log.file, log.names(n), view
    )


def _is_event(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and value.get("kind") in (*_SEEN, *_ASIDE, _CONDENSED)
    and "source" in value
  )


def _views(log: events.Log, unread: events.Unread) -> Iterator[_View]:
  view = _View([])
  for event in log.events:
    kind = event.value.get("kind") if isinstance(event.value, dict) else None
    if kind == "SystemPromptEvent" and view.seen:
      yield view
      view = _View([])
    if kind in _SEEN:
      unread.keys(event, _KEYS)
      view.seen.append(event)
    elif kind == _CONDENSED:
      yield view
      view = _condensed(view, event)
    elif kind not in _ASIDE or any(key in event.value for key in _SPEAKING):
      unread.add(event, events.kind(event))
  yield view


def _condensed(view: _View, event: events.Event) -> _View:
  """The view after a condensation; results go with their actions."""
  place, value = event.place, event.value
  gone = records.field(value, "forgotten_event_ids", list, place, default=[])
  kept = [e for e in view.seen if e.value.get("id") not in gone]
  calls = [
    e.value.get("tool_call_id")
    for e in kept
    if e.value["kind"] == "ActionEvent"
  ]
  kept = [
    e
    for e in kept
    if e.value["kind"] not in _RESULTS or e.value.get("tool_call_id") in calls
  ]
  summary = records.field(value, "summary", str, place, default=None)
  if summary is not None:
    at = records.field(value, "summary_offset", int, place)
    said = {"kind": "CondensationSummaryEvent", "summary": summary}
    kept.insert(at, events.Event(place, said, event.file))
  return _View(kept, kept=len(kept))


def _trajectory(file, own_id, view):
  found: list[types.Message] = []
  tools: list[Any] = []
  responses: dict[str, int] = {}  # Response id -> its turn in `found`.
  for i, event in enumerate(view.seen):
    place, value = event.place, event.value
    kind = value["kind"]
    if kind == "SystemPromptEvent":
      tools = records.field(value, "tools", list, place, default=[])
    message = _message(kind, value, place)
    if i < view.kept and message.role == "assistant":
      message = chat.as_context(message)
    reply = value.get("llm_response_id") if kind == "ActionEvent" else None
    if isinstance(reply, str) and reply in responses:
      found[responses[reply]] = _with_call(found[responses[reply]], message)
      continue
    if isinstance(reply, str):
      responses[reply] = len(found)
    found.append(message)
  events.need_prompt(found, view.seen[0].place if view.seen else "file")
  events.need_calls(found)
  if view.kept and all(m.context for m in found if m.role == "assistant"):
    raise errors.InputError(f"{view.seen[-1].place}: no turn of its own")
  return chat.trajectory(
    file,
    "openhands_events",
    own_id,
    found,
    tools=[_tool(tool) for tool in tools],
  )


def _message(kind, value, place):
  extended = value.get("extended_content") or []
  if kind == "SystemPromptEvent":
    parts = [value.get("system_prompt"), value.get("dynamic_context")]
    return types.Message("system", _text(parts, f"{place}.system_prompt"))
  if kind == "CondensationSummaryEvent":
    return types.Message("user", records.field(value, "summary", str, place))
  if kind == "MessageEvent":
    return _said(
      records.field(value, "llm_message", dict, place),
      extended,
      f"{place}.llm_message",
    )
  if kind == "ActionEvent":
    call = records.field(value, "tool_call", dict, place)
    return types.Message(
      "assistant",
      _text(value.get("thought"), f"{place}.thought"),
      reasoning=_reasoning(value, place),
      tool_calls=(chat.tool_call(call, f"{place}.tool_call"),),
    )
  answered = records.field(value, "tool_call_id", str, place)
  content = _result(kind, value, place)
  if extended:
    content = _text([content, *extended], f"{place}.extended_content")
  return types.Message("tool", content, tool_call_id=answered)


def _said(value, extended, place):
  content = value.get("content")
  parts = [content] if isinstance(content, str) else content or []
  if not isinstance(parts, list):
    raise errors.InputError(f"{place}.content: {parts!r:.80}; expected a list")
  role = records.field(value, "role", str, place)
  return chat.message(
    {
      "role": role,
      "content": _text([*parts, *extended], f"{place}.content"),
      "tool_calls": value.get("tool_calls"),
      "tool_call_id": value.get("tool_call_id"),
      "reasoning_content": _reasoning(value, place),
    },
    place,
  )


def _result(kind, value, place):
  if kind == "AgentErrorEvent":
    return records.field(value, "error", str, place)
  if kind == "UserRejectObservation":
    reason = records.field(value, "rejection_reason", str, place)
    return f"Action rejected: {reason}"
  observed = records.field(value, "observation", dict, place)
  key = "content" if "content" in observed else "output"
  if key not in observed:
    raise errors.InputError(
      f"{place}.observation: keys {', '.join(map(str, observed))}; expected"
      " 'content'"
    )
  return _text(observed[key], f"{place}.observation.{key}")


def _reasoning(value, place):
  """The thinking of a response, in whichever of three forms it is kept."""
  said = value.get("reasoning_content")
  if said:
    return chat.text(said, f"{place}.reasoning_content")
  blocks = records.field(value, "thinking_blocks", list, place, default=[])
  thoughts = [
    block["thinking"]
    for block in blocks
    if isinstance(block, dict) and isinstance(block.get("thinking"), str)
  ]
  item = records.field(
    value, "responses_reasoning_item", dict, place, default={}
  )
  for key in ("summary", "content"):
    thoughts += records.field(item, key, list, place, default=[])
  return _text(thoughts, f"{place}.reasoning") or None


def _text(value, place):
  """Text of a part, of a list of parts, of nothing."""
  if isinstance(value, list):
    return chat.text([part for part in value if part is not None], place)
  return chat.text([value] if isinstance(value, dict) else value, place)


def _with_call(turn, more):
  """A turn with another call of the same response."""
  return dataclasses.replace(
    turn,
    content="\n".join(filter(None, (turn.content, more.content))),
    reasoning=turn.reasoning or more.reasoning,
    tool_calls=(*turn.tool_calls, *more.tool_calls),
  )


def _tool(value: Any) -> Any:
  """A schema, or what the SDK writes of its own or an MCP server's tool."""
  if not isinstance(value, dict) or "function" in value or "name" in value:
    return value
  value = value.get("mcp_tool") or value
  made = {
    "name": value.get("name") or value.get("title"),
    "description": value.get("description") or "",
  }
  schema = value.get("inputSchema")
  return made if schema is None else {**made, "parameters": schema}
