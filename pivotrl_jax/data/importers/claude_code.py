"""Claude Code sessions: JSON lines of events, linked by `parentUuid`.

A file holds threads: the conversation, the branches it left when the user
went back to an earlier prompt, its side chains (sub-agents), and what follows
a compaction, whose history is the summary. Each is a trajectory; a turn that
two of them share is a turn of the first and context in the other. The lines
of one message id are one turn. System prompt and tools are not recorded.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import events
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known
from pivotrl_jax.data.importers import turns

_CHAT = ("user", "assistant")
# Types of events that the model never sees.
_ASIDE = (
  "agent-color", "agent-name", "agent-setting", "ai-title", "checkpoint",
  "custom-title", "file-history-snapshot", "last-prompt", "mode",
  "permission-mode", "pr-link", "progress", "queue-operation", "result",
  "summary", "system", "tag", "worktree-state",
)  # fmt: skip
_IDS = ("uuid", "sessionId", "session_id", "leafUuid", "messageId")
# Keys of a user's or an assistant's event; all but a few are no chat.
_KEYS = (
  "type", "uuid", "parentUuid", "logicalParentUuid", "isSidechain",
  "sessionId", "session_id", "message", "timestamp", "cwd", "version",
  "gitBranch", "userType", "requestId", "toolUseResult", "tool_use_result",
  "isMeta", "isCompactSummary", "isVisibleInTranscriptOnly",
  "isApiErrorMessage", "apiError", "error", "errorDetails", "agentId",
  "agentName", "teamName", "slug", "todos", "thinkingMetadata",
  "permissionMode", "sourceToolUseID", "sourceToolAssistantUUID", "promptId",
  "promptSource", "origin", "entrypoint", "parent_tool_use_id", "forkedFrom",
  "imagePasteIds", "summarizeMetadata", "isReplay", "isSynthetic", "mcpMeta",
  "interruptedMessageId", "planContent",
)  # fmt: skip
# Keys of its message that say how it was made.
_MESSAGE_KEYS = (
  "type", "container", "context_management", "diagnostics", "stop_details",
)  # fmt: skip
# Where the history that the model sees starts anew, and where it changes in
# a way that the file does not tell.
_COMPACTED = "compact_boundary"
_REWRITTEN = "microcompact_boundary"


@dataclasses.dataclass
class _Thread:
  """A conversation that grows: its events, `broken` where one is missing."""

  key: Any
  lines: list[events.Event] = dataclasses.field(default_factory=list)
  broken: str | None = None

  @property
  def side(self) -> bool:
    return self.key[1] is not None


def matches(value: Any) -> bool:
  """Whether a row is an event of a session, or holds a list of them."""
  return events.holds(value, _is_event)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """A trajectory a thread, side chains last; then what was not read."""
  return events.read(file, _is_event, _log)


def _log(log, unread):
  threads = _threads(log, unread)
  threads.sort(key=lambda thread: thread.side)
  taken: set[int] = set()
  for n, thread in enumerate(threads):
    last = thread.lines[-1]
    yield chat.attempt(
      last.file, last.place, _trajectory, log.names(n), thread, taken
    )
  spoken = {e.file.name for t in threads for e in t.lines}
  for part in log.file.parts:
    if part.name not in spoken:
      yield files.Skip(part.name, None, "a session without a message")


def _is_event(value: Any) -> bool:
  if not isinstance(value, dict):
    return False
  if value.get("type") in _CHAT:
    return isinstance(value.get("message"), dict)
  return value.get("type") in (*_ASIDE, "attachment") and any(
    key in value for key in _IDS
  )


def _threads(log: events.Log, unread: events.Unread) -> list[_Thread]:
  """Every thread of a log that has a message, in the order they begin."""
  linked = any(
    isinstance(e.value, dict) and e.value.get("parentUuid") for e in log.events
  )
  found: list[_Thread] = []
  homes: dict[str, _Thread] = {}  # Uuid -> the thread that has it.
  for event in log.events:
    if not _is_event(event.value):
      unread.add(event, events.kind(event))
      continue
    uuid = event.value.get("uuid")
    if isinstance(uuid, str) and uuid in homes:
      # A resumed session repeats what it goes on from.
      first = homes[uuid].lines[_position(homes[uuid], uuid)]
      if first.value.get("message") != event.value.get("message"):
        unread.add(event, f"another event of uuid {uuid!r:.80}")
      continue
    _note(event, unread)
    thread = _home(event, found, homes, linked)
    if not any(thread is other for other in found):
      found.append(thread)
    thread.lines.append(event)
    if isinstance(uuid, str):
      homes[uuid] = thread
  return [
    t
    for t in found
    if any(_is_chat(e) or _queued(e) is not None for e in t.lines)
  ]


def _note(event, unread):
  if event.value["type"] == "attachment":
    if _queued(event) is None:
      attached = event.value.get("attachment")
      kind = attached.get("type") if isinstance(attached, dict) else None
      unread.add(event, f"attachment {kind!r}")
  elif _is_chat(event):
    unread.keys(event, _KEYS)
  elif known.is_content(event.value.get("message")):
    unread.add(event, f"message of {events.kind(event)}")


def _home(
  event: events.Event,
  found: list[_Thread],
  homes: dict[str, _Thread],
  linked: bool,
) -> _Thread:
  """The thread that `event` goes on, or a new one that it begins."""
  value = event.value
  key = _key(value)
  parent = value.get("parentUuid")
  home = homes.get(parent) if isinstance(parent, str) else None
  if value.get("subtype") in (_COMPACTED, _REWRITTEN):
    return _Thread(key, broken=_unknown_history(event))
  if value.get("isCompactSummary") is True:
    fresh = home is not None and not any(_is_chat(e) for e in home.lines)
    return home if fresh else _Thread(key)
  if home is not None:
    at = _position(home, parent)
    if key[1] is not None and not home.side:
      return _Thread(key)  # A side chain that hangs on the call it came from.
    if _goes_on(event, home.lines[at], home.lines[at + 1 :]):
      return home
    return _Thread(home.key, home.lines[: at + 1], home.broken)
  if isinstance(parent, str):
    return _Thread(
      key,
      broken=f"{event.place}.parentUuid: {parent!r}; expected the uuid of"
      " an event before it",
    )
  last = next((t for t in reversed(found) if t.key == key), None)
  begins = linked and "parentUuid" in value and _is_prompt(event)
  return _Thread(key) if last is None or begins else last


def _unknown_history(event):
  if event.value["subtype"] == _COMPACTED:
    return None
  return (
    f"{event.place}.subtype: {_REWRITTEN!r}; from here on the file does not"
    " hold what the model saw"
  )


def _key(value):
  """`(session, side chain)` of an event, the second None outside of any."""
  side = value.get("parent_tool_use_id")
  if side is None and value.get("isSidechain") is True:
    side = value.get("agentId") or "side"
  session = value.get("sessionId", value.get("session_id"))
  return session, None if side is None else str(side)


def _position(thread, uuid):
  return next(
    i
    for i in reversed(range(len(thread.lines)))
    if thread.lines[i].value.get("uuid") == uuid
  )


def _goes_on(
  event: events.Event, parent: events.Event, tail: Sequence[events.Event]
) -> bool:
  """Whether `event` follows `tail`, though its parent stands before that.

  So it is for the lines of one message and the results of parallel calls; not
  where the user went back, or the model was asked again.
  """
  said = [e for e in tail if _is_chat(e)]
  if any(_is_prompt(e) for e in said):
    return False
  turns = {_turn(e) for e in said if e.value["type"] == "assistant"}
  turns -= {_turn(parent)}
  if _is_prompt(event):
    return not turns
  if event.value["type"] == "assistant" and parent.value["type"] == "user":
    return not turns or _turn(event) in turns
  return True


def _is_chat(event):
  return event.value["type"] in _CHAT


def _is_prompt(event):
  """Whether the user speaks: neither a tool's result nor a note of the tool."""
  if event.value["type"] != "user" or event.value.get("isMeta") is True:
    return False
  content = event.value["message"].get("content")
  return not isinstance(content, list) or not any(
    isinstance(part, dict) and part.get("type") == "tool_result"
    for part in content
  )


def _turn(event):
  """What the lines of one model reply share."""
  message = event.value.get("message")
  own_id = message.get("id") if isinstance(message, dict) else None
  own_id = own_id or event.value.get("requestId")
  return own_id if isinstance(own_id, str) else id(event)


def _queued(event):
  """What the user typed while the model worked."""
  attached = event.value.get("attachment")
  if isinstance(attached, dict) and attached.get("type") == "queued_command":
    return attached.get("prompt")
  return None


def _trajectory(own_id, thread, taken):
  if thread.broken:
    raise errors.InputError(thread.broken)
  first, last = thread.lines[0], thread.lines[-1]
  slots = _joined(thread.lines)
  found = turns.placed_messages(map(_message, slots), first.place)
  # A turn of another thread, or one that no model wrote, is context here.
  replies = [s for s in slots if s[0].value["type"] == "assistant"]
  marks = iter([id(s[0]) in taken or _is_canned(s[0]) for s in replies])
  found = [
    chat.as_context(m) if m.role == "assistant" and next(marks) else m
    for m in found
  ]
  events.need_prompt(found, first.place)
  if replies and all(m.context for m in found if m.role == "assistant"):
    raise errors.InputError(f"{last.place}: no turn of its own")
  made = chat.trajectory(
    last.file, "claude_code", own_id, found, task_id=thread.key[0]
  )
  taken.update(id(e) for e in thread.lines)
  return made


def _joined(found: Sequence[events.Event]) -> list[list[events.Event]]:
  """The events by message: the lines of one reply stand at its first."""
  slots: dict[Any, list[events.Event]] = {}
  for event in found:
    if event.value["type"] == "assistant":
      slots.setdefault(_turn(event), []).append(event)
    elif event.value["type"] == "user" or _queued(event) is not None:
      slots[id(event)] = [event]
  return list(slots.values())


def _message(lines: Sequence[events.Event]) -> tuple[str, dict[str, Any]]:
  """The place and the message of one slot."""
  first = lines[0]
  if first.value["type"] == "attachment":
    return first.place, {"role": "user", "content": _queued(first)}
  place = f"{first.place}.message"
  value = first.value["message"]
  if value.get("role") != first.value["type"]:
    raise errors.InputError(
      f"{place}.role: {value.get('role')!r}; expected {first.value['type']!r}"
    )
  content = value.get("content")
  if len(lines) > 1:
    content = []
    for line in lines:  # Some versions repeat what the line before had.
      content += [part for part in _parts(line) if part not in content]
  others = {k: v for k, v in value.items() if k not in _MESSAGE_KEYS}
  return place, {**others, "content": content}


def _parts(line):
  """The blocks of a line; text stands for one."""
  content = line.value["message"].get("content")
  if isinstance(content, str):
    return [{"type": "text", "text": content}]
  return records.field(
    line.value["message"], "content", list, f"{line.place}.message"
  )


def _is_canned(event):
  return (
    event.value["message"].get("model") == "<synthetic>"
    or event.value.get("isApiErrorMessage") is True
  )
