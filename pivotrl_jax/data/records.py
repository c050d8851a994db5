"""Artifacts of a workdir: JSON lines <-> the records of `types`.

Readers are strict and name file:line. Writers write a temporary name in the
same folder and rename; `Appender` keeps what a killed stage had finished.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import gzip
import json
import os
import pathlib
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types

Json = dict[str, Any]


def read_jsonl(path: pathlib.Path | str) -> Iterator[tuple[int, Json]]:
  """(line number from 1, object) of each line; gzip by the name's ending.

  Raises:
    InputError: no such file, or a line that is no JSON object.
  """
  path = pathlib.Path(path)
  opener = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rt", encoding="utf-8") as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield number, _object(line, f"{path}:{number}")
  except OSError as error:
    raise errors.InputError(
        f"{path}: {error.strerror or error}; expected a file of JSON lines"
    ) from error
  except (EOFError, UnicodeDecodeError) as error:
    raise errors.InputError(f"{path}: {error}; expected a whole file") from error


def write_jsonl(path: pathlib.Path, rows: Iterable[Json]) -> None:
  """Writes all rows, or leaves what was there."""
  write_text(path, "".join(_line(row) for row in rows))


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes `text` under a temporary name, then renames."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.partial")
  with open(temporary, "w", encoding="utf-8") as out:
    out.write(text)
    out.flush()
    os.fsync(out.fileno())
  os.replace(temporary, path)


class Appender:
  """A JSONL artifact that is written in parts, across restarts.

  Rows go to `NAME.partial`; opening it again finds the whole rows of before
  (`rows`) and drops a torn last line; `finish` renames it to `NAME`.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._partial = path.with_name(f"{path.name}.partial")
    self.rows: list[Json] = []

  def __enter__(self) -> "Appender":
    kept = b""
    if self._partial.exists():
      data = self._partial.read_bytes()
      kept = data[: data.rfind(b"\n") + 1]
      self.rows = [
          _object(line, str(self._partial)) for line in kept.splitlines()
      ]
    self._file = open(self._partial, "ab")
    self._file.truncate(len(kept))
    return self

  def append(self, rows: Iterable[Json]) -> None:
    """Adds rows and hands them to the operating system."""
    rows = list(rows)
    self._file.write("".join(_line(row) for row in rows).encode())
    self._file.flush()
    self.rows += rows

  def finish(self) -> None:
    """The artifact is complete."""
    os.fsync(self._file.fileno())
    os.replace(self._partial, self._path)

  def __exit__(self, *_) -> None:
    self._file.close()


def replace_skipped(
    workdir: pathlib.Path, stage: str, rows: Iterable[Json]
) -> None:
  """Puts a stage's rows into skipped.jsonl in place of its earlier ones."""
  path = workdir / "skipped.jsonl"
  kept = []
  if path.exists():
    kept = [row for _, row in read_jsonl(path) if row["stage"] != stage]
  write_jsonl(path, [*kept, *({"stage": stage} | row for row in rows)])


def trajectory_to_json(t: types.Trajectory) -> Json:
  row = {
      "id": t.id,
      "domain": t.domain,
      "source": t.source,
      "task_id": t.task_id,
      "reward": t.reward,
      "success": t.success,
      "tools": list(t.tools),
      "messages": [_message_to_json(m) for m in t.messages],
  }
  return row | ({"extra": t.extra} if t.extra else {})


def trajectory_from_json(row: Json, place: str) -> types.Trajectory:
  messages = get(row, "messages", list, place)
  return types.Trajectory(
      id=get(row, "id", str, place),
      domain=get(row, "domain", str, place),
      source=get(row, "source", str, place),
      task_id=get(row, "task_id", str, place),
      reward=get(row, "reward", (int, float, type(None)), place),
      success=get(row, "success", (bool, type(None)), place),
      tools=tuple(get(row, "tools", list, place)),
      messages=tuple(
          message_from_json(m, f"{place}: messages[{i}]")
          for i, m in enumerate(messages)
      ),
      extra=row.get("extra", {}),
  )


def _message_to_json(m: types.Message) -> Json:
  row: Json = {"role": m.role, "content": m.content}
  if m.reasoning is not None:
    row["reasoning"] = m.reasoning
  if m.tool_calls:
    row["tool_calls"] = [dataclasses.asdict(c) for c in m.tool_calls]
  if m.tool_call_id is not None:
    row["tool_call_id"] = m.tool_call_id
  if m.context:
    row["context"] = True
  if m.prompt is not None:
    row["prompt"] = [_message_to_json(p) for p in m.prompt]
  return row


def message_from_json(row: Any, place: str) -> types.Message:
  """A message of trajectories.jsonl."""
  if not isinstance(row, dict):
    raise errors.InputError(f"{place}: {row!r:.60}; expected an object")
  role = get(row, "role", str, place)
  if role not in types.ROLES:
    raise errors.InputError(f"{place}: role {role!r}; expected {types.ROLES}")
  prompt = row.get("prompt")
  return types.Message(
      role=role,
      content=get(row, "content", str, place),
      reasoning=row.get("reasoning"),
      tool_calls=tuple(
          types.ToolCall(
              get(c, "name", str, place),
              get(c, "arguments", str, place),
              c.get("id"),
          )
          for c in row.get("tool_calls", ())
      ),
      tool_call_id=row.get("tool_call_id"),
      context=bool(row.get("context", False)),
      prompt=None
      if prompt is None
      else tuple(message_from_json(p, place) for p in prompt),
  )


def candidate_to_json(c: types.Candidate) -> Json:
  return dataclasses.asdict(c) | {
      "demonstration": types.action_to_json(c.demonstration)
  }


def candidate_from_json(row: Json, place: str) -> types.Candidate:
  return types.Candidate(
      id=get(row, "id", str, place),
      trajectory_id=get(row, "trajectory_id", str, place),
      turn=get(row, "turn", int, place),
      num_turns=get(row, "num_turns", int, place),
      prefix=get(row, "prefix", int, place),
      demonstration=types.action_from_json(
          row.get("demonstration"), place=f"{place}: demonstration"
      ),
  )


def profile_to_json(p: types.Profile) -> Json:
  return dataclasses.asdict(p)


def profile_from_json(row: Json, place: str) -> types.Profile:
  return types.Profile(
      candidate_id=get(row, "candidate_id", str, place),
      policy=get(row, "policy", str, place),
      group_size=get(row, "group_size", int, place),
      rewards=tuple(get(row, "rewards", list, place)),
      reasons=tuple(get(row, "reasons", list, place)),
      mean=get(row, "mean", (int, float), place),
      variance=get(row, "variance", (int, float), place),
      completions=tuple(get(row, "completions", list, place)),
  )


def pivot_to_json(p: types.Pivot) -> Json:
  return dataclasses.asdict(p)


def pivot_from_json(row: Json, place: str) -> types.Pivot:
  return types.Pivot(
      candidate_id=get(row, "candidate_id", str, place),
      mean=get(row, "mean", (int, float), place),
      variance=get(row, "variance", (int, float), place),
      rule=get(row, "rule", str, place),
  )


def _reader(from_json: Callable[[Json, str], Any]):
  def read(path: pathlib.Path | str) -> list[Any]:
    return [from_json(row, f"{path}:{n}") for n, row in read_jsonl(path)]

  return read


read_trajectories = _reader(trajectory_from_json)
read_candidates = _reader(candidate_from_json)
read_profiles = _reader(profile_from_json)
read_pivots = _reader(pivot_from_json)


def get(row: Json, key: str, kind: Any, place: str) -> Any:
  """`row[key]`, or one clear line."""
  if not isinstance(row, dict):
    raise errors.InputError(f"{place}: {row!r:.60}; expected an object")
  value = row.get(key)
  wrong = isinstance(value, bool) and kind in (int, (int, float))
  if wrong or not isinstance(value, kind):
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    raise errors.InputError(
        f"{place}: {key} is {value!r:.60}; expected {' or '.join(names)}"
    )
  return value


def _object(line, place):
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f"{place}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise errors.InputError(
        f"{place}: {type(value).__name__}; expected a JSON object"
    )
  return value


def _line(row):
  # ASCII, so that lone surrogates of a log survive.
  return json.dumps(row, ensure_ascii=True) + "\n"
