"""OpenHands' log of LLM calls: `messages`, `response`, `kwargs.tools`.

A log of all calls, one a line or one a file, holds each turn once as a
response and again in the histories of the calls that follow. Calls whose
history goes on from one another are one trajectory, the last call's. A call
that goes back to an earlier history is a restart, and gives up what followed.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

_Key = tuple[Any, ...]


@dataclasses.dataclass
class _Run:
  """Calls that go on from one another.

  Attributes:
    file, line: where the last of them is.
    first: what the first of them saw, as `_key`s.
    said: the last call's history and reply, as `_key`s.
    messages: the same as messages, each reply as it was first given.
    tools: of the last call.
    calls: how many there are.
  """

  file: files.File
  line: int | None
  first: list[_Key]
  said: list[_Key]
  messages: list[types.Message]
  tools: Any
  calls: int = 1


def matches(value: Any) -> bool:
  """Whether a document or row is a logged call."""
  return (
    isinstance(value, dict)
    and {"messages", "response"} <= set(value)
    and ("kwargs" in value or "tools" in value)
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a run; given-up attempts are skipped."""
  runs: list[_Run] = []
  for part in file.parts or (file,):
    for line, value in part.rows():
      call = chat.one_row(part, line, value, _call)
      if isinstance(call, files.Skip):
        yield call
        continue
      before = _longest(runs, call)
      if before is None:
        runs.append(call)
      else:
        runs[runs.index(before)] = _going_on(before, call)
  taken: set[_Key] = set()
  for i, run in enumerate(runs):
    if any(_restarts(other, run) for other in runs[i + 1 :]):
      place = None if run.line is None else str(run.line)
      yield files.Skip(run.file.name, place, "an attempt that was restarted")
    else:
      yield chat.attempt(run.file, run.line, _trajectory, run, taken)


def _call(file, line, value):
  place = "call"
  response = records.field(value, "response", dict, place)
  choices = records.field(response, "choices", list, "response")
  if len(choices) != 1:
    raise errors.InputError(
      f"response.choices: {len(choices)} of them; expected one reply"
    )
  reply = records.field(choices[0], "message", dict, "response.choices[0]")
  kwargs = records.field(value, "kwargs", dict, place, default={})
  seen = chat.messages(value.get("messages"))
  found = [*seen, chat.message(reply, "response.choices[0].message")]
  if found[-1].role != "assistant":
    raise errors.InputError(
      f"response.choices[0].message.role: {found[-1].role!r}; expected"
      " 'assistant'"
    )
  said = [_key(m) for m in found]
  tools = kwargs.get("tools") or value.get("tools") or ()
  return _Run(file, line, said[:-1], said, found, tools)


def _key(message: types.Message) -> _Key:
  """What is equal in a reply and in the history that repeats it."""
  calls = [(c.name, _canonical(c.arguments)) for c in message.tool_calls]
  return message.role, message.content.strip(), tuple(calls)


def _canonical(arguments):
  try:
    return json.dumps(json.loads(arguments), sort_keys=True)
  except (ValueError, RecursionError):
    return arguments


def _longest(runs: Sequence[_Run], call: _Run) -> _Run | None:
  """The run that `call` goes on from: its whole history is that of `call`."""
  return max(
    (run for run in runs if call.first[: len(run.said)] == run.said),
    key=lambda run: len(run.said),
    default=None,
  )


def _going_on(run: _Run, call: _Run) -> _Run:
  """`call` with the replies of `run`, whose thinking a history may drop."""
  added = call.messages[len(run.messages) :]
  return dataclasses.replace(
    call,
    first=run.first,
    messages=[*run.messages, *added],
    calls=run.calls + 1,
  )


def _restarts(later: _Run, run: _Run) -> bool:
  """Whether `later` begins at a place that `run` had gone on from."""
  return run.said[: len(later.first)] == later.first


def _trajectory(run, taken):
  """The run's messages; a turn that an earlier run had too is context."""
  marks = [_mark(run, m) for m in run.messages]
  found = [
    chat.as_context(m) if mark in taken else m
    for m, mark in zip(run.messages, marks)
  ]
  name = run.file.stem.rpartition("/")[2]
  task = run.file.folder if run.calls > 1 and run.line is None else name
  outcomes = run.file.beside("outcomes.json") or {}
  outcome = records.field(outcomes, name, dict, "outcomes.json", default={})
  success = records.field(
    outcome, "resolved", bool, "outcomes.json", default=None
  )
  made = chat.trajectory(
    run.file,
    "openhands",
    None,
    found,
    tools=run.tools,
    task_id=task,
    reward=success,
    success=success,
  )
  taken.update(mark for mark in marks if mark is not None)
  return made


def _mark(run, message):
  """A turn's identity among the runs on one task: its calls' ids, if any."""
  ids = tuple(c.id for c in message.tool_calls)
  if message.role != "assistant" or not ids or None in ids:
    return None
  return *run.first[:2], ids
