"""Terminus turn rows: one row a turn, each with its whole history.

A terminus reply is JSON text with a batch of commands; that text is the
action, as the terminus verifiers score it.
"""

from collections.abc import Iterator
import itertools
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import responses


def matches(value: Any) -> bool:
  """Whether a row is a turn of a longer trajectory."""
  return (
    isinstance(value, dict)
    and "expected_answer" in value
    and isinstance(value.get("metadata"), dict)
    and {"row_idx", "turn_index"} <= set(value["metadata"])
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a `metadata.row_idx`; its rows follow each other."""
  for index, group in itertools.groupby(file.rows(), _row_index):
    rows = [row for _, row in group]
    if isinstance(rows[0], files.Skip):
      yield from rows
    else:
      where = None if index is None else str(index)
      yield chat.attempt(file, where, _trajectory, file, index, rows)


def commands(content: str) -> list[Any] | None:
  """The command batch of a terminus-1 or terminus-2 reply, else None."""
  start = content.find("{")
  if start < 0 or '"commands"' not in content:
    return None
  try:
    value, _ = json.JSONDecoder().raw_decode(content, start)
  except (ValueError, RecursionError):
    return None
  found = value.get("commands")
  return found if isinstance(found, list) else None


def _row_index(numbered):
  row = numbered[1]
  if isinstance(row, files.Skip):
    return numbered[0]
  metadata = row.get("metadata") if isinstance(row, dict) else None
  return metadata.get("row_idx") if isinstance(metadata, dict) else None


def _trajectory(file, index, rows):
  if index is None:
    raise errors.InputError("metadata.row_idx: missing; expected an integer")
  row = max(rows, key=_history_length)
  request = records.field(row, "responses_create_params", dict, "row")
  history = responses.messages(request.get("input"))
  answer = records.field(row, "expected_answer", str, "row")
  found = [*history, _turn(answer)]
  for other in rows:
    _check_nested(other, found)
  metadata = row["metadata"]
  return chat.trajectory(
    file,
    "terminus",
    index,
    found,
    task_id=metadata.get("trial_name") or metadata.get("task"),
    extra={"metadata": {"harness": _harness(row, answer)}},
  )


def _turn(answer):
  thought, content = chat.split_think(answer)
  return types.Message("assistant", content, reasoning=thought)


def _check_nested(row, found):
  """InputError where a row is no turn of the longest history."""
  request = records.field(row, "responses_create_params", dict, "row")
  history = responses.messages(request.get("input"))
  answer = records.field(row, "expected_answer", str, "row")
  said = [_spoken(m) for m in [*history, _turn(answer)]]
  if said != [_spoken(m) for m in found[: len(said)]]:
    turn = row["metadata"].get("turn_index")
    raise errors.InputError(
      f"metadata.turn_index {turn!r}: another history than that of the last"
      " turn; expected its beginning"
    )


def _spoken(message):
  return message.role, message.content.strip()


def _harness(row, answer):
  """Which harness a row says, or its reply was written for."""
  said = row["metadata"].get("harness")
  if said is not None:
    return said
  return "terminus_1" if '"state_analysis"' in answer else "terminus_2"


def _history_length(row):
  request = row.get("responses_create_params")
  found = request.get("input") if isinstance(request, dict) else None
  return len(found) if isinstance(found, list) else 0
