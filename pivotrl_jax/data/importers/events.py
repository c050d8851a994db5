"""What the event logs share: where their events are, and what is left out.

A log is a file of events, one a line; a row or a document that holds them in
a list; or a folder of one file an event. What follows an event that cannot be
read has a history that is not known: a log ends before it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
import dataclasses
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known

# The keys under which a row or a document holds its events.
_LISTS = ("events", "history", "traces", "trajectory", "items")


@dataclasses.dataclass(frozen=True)
class Event:
  """One event, its place for people, and the file it is in."""

  place: str
  value: Any
  file: files.File


@dataclasses.dataclass(frozen=True)
class Log:
  """Events in order; `name` tells the logs of a file apart, None if alone."""

  file: files.File
  name: str | None
  events: tuple[Event, ...]

  def names(self, n: int) -> str | None:
    """The own id of the n-th trajectory of this log."""
    parts = [p for p in (self.name, str(n) if n else None) if p is not None]
    return "-".join(parts) or None


class Unread:
  """What a log holds and its reader does not know, where it first occurs."""

  def __init__(self):
    self._found: dict[str, Event] = {}

  def add(self, event: Event, what: str) -> None:
    """Notes `what`, a key or a type of `event`."""
    self._found.setdefault(what, event)

  def keys(self, event: Event, *tables: Collection[str]) -> None:
    """Notes the keys of `event` that say something and are in no table."""
    for key, value in event.value.items():
      if known.is_content(value) and not any(key in table for table in tables):
        self.add(event, f"key {key!r}")

  def skips(self) -> Iterator[files.Skip]:
    """One for each: its first place in the log."""
    for what, event in self._found.items():
      yield files.Skip(event.file.name, event.place, f"{what}: not read")


def holds(value: Any, is_event: Callable[[Any], bool]) -> bool:
  """Whether `value` is an event, or a row or document that holds some."""
  return is_event(value) or _held(value, is_event) is not None


def read(
  file: files.File,
  is_event: Callable[[Any], bool],
  read_log: Callable[[Log, Unread], Iterator[types.Trajectory | files.Skip]],
) -> Iterator[types.Trajectory | files.Skip]:
  """What `read_log` makes of each log, and what it noted as unread."""
  for log in _logs(file, is_event):
    if isinstance(log, files.Skip):
      yield log
      continue
    unread = Unread()
    yield from read_log(log, unread)
    yield from unread.skips()


def _logs(
  file: files.File, is_event: Callable[[Any], bool]
) -> Iterator[Log | files.Skip]:
  """The logs of a file: one a row that holds events, one of all the rest."""
  loose: list[Event] = []
  lost: Event | None = None
  for part in file.parts or (file,):
    for place, value in part.rows():
      held = None if is_event(value) else _held(value, is_event)
      if held is not None:
        name = None if place is None else str(place)
        found = (Event(f"[{i}]", x, part) for i, x in enumerate(held))
        yield Log(part, name, tuple(found))
        continue
      where = "the file" if place is None else f"line {place}"
      event = Event(where, value, part)
      if isinstance(value, files.Skip):
        yield value
        lost = lost or event
      elif lost is None:
        loose.append(event)
      elif loose:
        reason = f"the events after {lost.place}, which cannot be read"
        yield files.Skip(part.name, where, reason)
        break
  if loose:
    yield Log(file, None, tuple(loose))


def kind(event: Event) -> str:
  """What an event says it is, for the line that leaves it out."""
  if isinstance(event.value, dict):
    for key in ("type", "kind"):
      if isinstance(event.value.get(key), str):
        return f"{key} {event.value[key]!r:.80}"
  return files.found(event.value)


def need_prompt(found: Sequence[types.Message], place: str) -> None:
  """InputError where a model's turn has nothing before it."""
  if found and found[0].role == "assistant":
    raise errors.InputError(
      f"{place}: a turn without anything before it; expected its prompt"
    )


def need_calls(found: Sequence[types.Message]) -> None:
  """InputError where a result answers no call before it."""
  ids: set[str | None] = {None}
  for message in found:
    ids |= {call.id for call in message.tool_calls}
    if message.tool_call_id not in ids:
      raise errors.InputError(
        f"a result of call {message.tool_call_id!r:.60}: no call before it has"
        " this id"
      )


def _held(value, is_event):
  found = value
  if isinstance(value, dict):
    lists = (value.get(key) for key in _LISTS)
    found = next((x for x in lists if isinstance(x, list)), None)
  if isinstance(found, list) and any(is_event(x) for x in found):
    return found
  return None
