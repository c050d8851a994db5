"""Codex rollouts: Responses items, each in an envelope with a `payload`.

`event_msg` lines repeat for the screen what the items say. Before September
2025 the items stood bare, behind a header line. A compaction that records the
history it leaves begins another trajectory; one that does not ends it, since
what the model saw from there on is not in the file.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import events
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import responses

# Envelopes whose payload is no text of the chat.
_ASIDE = ("turn_context", "event_msg", "world_state")
_TYPES = ("session_meta", "response_item", "compacted", *_ASIDE)
# Items that the program notes for itself.
_NOTES = ("ghost_snapshot",)
_ROLLED_BACK = "thread_rolled_back"


@dataclasses.dataclass
class _Session:
  """One conversation up to its end, or to where its history is rewritten.

  Attributes:
    meta: the payload of `session_meta`, or an old file's header.
    items: `(place, item)` of what the model saw and said.
    copied: how many of the first items are history of another trajectory.
    lost: why nothing after the items can be read.
  """

  meta: dict[str, Any]
  items: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
  copied: int = 0
  lost: str | None = None


def matches(value: Any) -> bool:
  """Whether a row is a line of a rollout, or holds a list of them."""
  return events.holds(value, _is_event)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a session, and another after each compaction."""
  return events.read(file, _is_event, _log)


def _log(log, unread):
  for n, session in enumerate(_sessions(log, unread)):
    if session.items or not session.lost:
      where = session.items[0][0] if session.items else log.name
      yield chat.attempt(
        log.file, where, _trajectory, log.file, log.names(n), session
      )
    if session.lost:
      yield files.Skip(
        log.file.name, session.lost.partition(":")[0], session.lost
      )


def _is_event(value: Any) -> bool:
  if not isinstance(value, dict):
    return False
  if value.get("type") in _TYPES:
    return isinstance(value.get("payload"), dict)
  return _is_header(value) or responses.is_item(value) or _is_state(value)


def _is_header(value):
  return {"id", "timestamp", "instructions"} <= set(value) and not (
    {"type", "messages", "input"} & set(value)
  )


def _is_state(value):
  return value.get("record_type") == "state"


def _opened(value: Any) -> tuple[str | None, dict[str, Any]]:
  """`(type, payload)` of a line, of the old ones too; None of no event."""
  if not _is_event(value) or _is_state(value):
    return ("event_msg" if _is_event(value) else None), {}
  if value.get("type") in _TYPES:
    return value["type"], value["payload"]
  return ("session_meta" if _is_header(value) else "response_item"), value


def _sessions(log: events.Log, unread: events.Unread) -> Iterator[_Session]:
  session = _Session({})
  for event in log.events:
    kind, value = _opened(event.value)
    if kind is None:
      unread.add(event, events.kind(event))
    elif kind == "session_meta":
      # A fork's file has the metadata of what it goes on from second.
      begun = session.items or session.lost
      if begun and value.get("id") != session.meta.get("id"):
        yield session
        session = _Session(value)
      session.meta = session.meta or value
    elif kind == "compacted":
      yield session
      session = _compacted(session.meta, event.place, value)
    elif kind in _ASIDE and responses.is_item(value):
      unread.add(event, f"{value['type']} in a line of {events.kind(event)}")
    elif session.lost:
      continue
    elif kind == "response_item" and value.get("type") not in _NOTES:
      session.items.append((event.place, value))
    elif value.get("type") == _ROLLED_BACK:
      session.lost = (
        f"{event.place}: {_ROLLED_BACK}: what the model saw from here on is"
        " not recorded"
      )
  yield session


def _compacted(meta, place, value):
  history = value.get("replacement_history")
  if not isinstance(history, list):
    return _Session(
      meta,
      lost=f"{place}: compacted without replacement_history: what the"
      " model saw from here on is not recorded",
    )
  here = f"{place}.replacement_history"
  items = [(f"{here}[{i}]", item) for i, item in enumerate(history)]
  return _Session(meta, items, copied=len(items))


def _trajectory(file, own_id, session):
  meta = session.meta
  copied = responses.placed(session.items[: session.copied])
  found = [
    *_system(meta),
    *(chat.as_context(m) if m.role == "assistant" else m for m in copied),
    *responses.placed(session.items[session.copied :]),
  ]
  # The user's own instructions; most versions repeat them as a message.
  given = records.field(meta, "instructions", str, "session_meta", default="")
  if given and not any(given.strip() in m.content for m in found):
    found.insert(len(_system(meta)), types.Message("system", given))
  events.need_prompt(found, session.items[0][0] if session.items else "file")
  events.need_calls(found)
  return chat.trajectory(
    file,
    "codex",
    own_id,
    found,
    tools=[_tool(t) for t in meta.get("dynamic_tools") or ()],
    task_id=records.field(meta, "id", str, "session_meta", default=None),
  )


def _system(meta):
  base = meta.get("base_instructions")
  if isinstance(base, dict):
    base = base.get("text")
  if base is None:
    return []
  return [types.Message("system", chat.text(base, "base_instructions"))]


def _tool(value):
  schema = records.field(
    value, "inputSchema", dict, "dynamic_tools", default={}
  )
  return {
    "name": value.get("name"),
    "description": value.get("description") or "",
    "parameters": schema,
  }
