"""The artifacts of a workdir: JSON lines <-> the records of `types`.

Readers name `file:line` of what is wrong. Writers never leave half a file
under the final name: `write_jsonl` renames a whole temporary file, `Appender`
grows `NAME.partial` and renames it when the stage is done. Text is written as
ASCII, so that lone surrogates survive; NaN and Infinity are kept as Python's
json spells them.
"""

from collections.abc import Callable, Iterable, Iterator
import filecmp
import gzip
import io
import json
import os
import pathlib
from typing import Any, BinaryIO
import zlib

from pivotrl_jax import errors
from pivotrl_jax import types

# What reading a file that is damaged, packed or not, raises.
UNREADABLE = (OSError, EOFError, zlib.error)

_REQUIRED = object()
_NUMBER_OR_NULL = (int, float, type(None))
# Rows of skipped.jsonl stay in the order of the stages that write them.
_STAGES = ("import", "candidates", "warm_start", "profile", "select", "train")


def read_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields `(line number from 1, object)`; blank lines are passed over.

  Raises:
    errors.InputError: the file cannot be read, or a line is no JSON object.
  """
  for number, line in read_lines(path):
    if not line.strip():
      continue
    place = f"{path}:{number}"
    value = decode(line, place, truncated=not line.endswith(b"\n"))
    if not isinstance(value, dict):
      raise errors.InputError(
        f"{place}: {type(value).__name__}; expected a JSON object"
      )
    yield number, value


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Yields `(line number from 1, bytes)` of a file that may be packed."""
  try:
    with open_binary(path) as handle:
      yield from enumerate(handle, 1)
  except UNREADABLE as error:
    raise unreadable(path, error) from error


def open_binary(path: pathlib.Path) -> BinaryIO:
  """Opens a plain, gzip or zstd file for reading bytes, by how it starts."""
  handle = open(path, "rb")
  start = handle.peek(4)[:4]
  if start.startswith(b"\x1f\x8b"):
    handle.close()
    return gzip.open(path, "rb")
  if start == b"\x28\xb5\x2f\xfd":
    handle.close()
    import pyarrow  # Takes a while to import.

    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
  return handle


def unreadable(path: pathlib.Path, error: Exception) -> errors.InputError:
  """The one line for a file that cannot be read."""
  reason = getattr(error, "strerror", None) or error
  return errors.InputError(f"{path}: cannot read: {reason}")


def is_json(text: str) -> bool:
  """Whether a text is one JSON value."""
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def decode(text: bytes, place: str, *, truncated: bool = False) -> Any:
  """JSON of UTF-8 `text`, a byte order mark or not; InputError names `place`."""
  try:
    return json.loads(text.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    cut = "truncated last line? " if truncated else ""
    raise errors.InputError(
      f"{place}: {cut}not JSON: {error}; text {text[:60]!r}"
    ) from error


def encode(value: Any) -> str:
  """One line of JSON, ASCII only."""
  return json.dumps(value, ensure_ascii=True)


def write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> int:
  """Writes `rows` to `path` in one rename; returns how many there were."""
  return write_text(path, (encode(row) + "\n" for row in rows))


def write_text(path: pathlib.Path, parts: Iterable[str]) -> int:
  """Writes `parts` to `path` in one rename; returns how many there were."""
  temporary = path.with_name(path.name + ".tmp")
  count = 0
  try:
    with open(temporary, "w", encoding="utf-8") as handle:
      for part in parts:
        handle.write(part)
        count += 1
      _sync(handle)
    os.replace(temporary, path)
  except OSError as error:
    raise _unwritable(path, error) from error
  finally:
    temporary.unlink(missing_ok=True)
  return count


class Appender:
  """Grows an artifact that a killed stage can go on with.

  Rows go to `NAME.partial`. Opening it again keeps the whole rows and drops a
  torn last line; `finish` renames it to `NAME`. Leaving the `with` block
  without `finish` keeps the partial file.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._partial = path.with_name(path.name + ".partial")
    try:
      self._handle = open(self._partial, "ab")
      self._handle.truncate(_whole_lines(self._partial))
    except OSError as error:
      raise _unwritable(path, error) from error

  def __enter__(self) -> "Appender":
    return self

  def __exit__(self, *exception: Any) -> None:
    self._handle.close()

  @property
  def rows(self) -> Iterator[dict[str, Any]]:
    """The rows so far, those of earlier runs first."""
    for _, row in read_jsonl(self._partial):
      yield row

  def append(self, rows: Iterable[dict[str, Any]]) -> None:
    """Adds `rows`; they are on the disk when this returns."""
    text = "".join(encode(row) + "\n" for row in rows)
    try:
      self._handle.write(text.encode("ascii"))
      _sync(self._handle)
    except OSError as error:
      raise _unwritable(self._path, error) from error

  def replace(self, rows: Iterable[dict[str, Any]]) -> None:
    """Puts `rows` in the place of those so far, in one rename."""
    self._handle.close()
    write_jsonl(self._partial, rows)
    self._handle = open(self._partial, "ab")

  def publish(self) -> None:
    """Writes the rows so far under the final name too; they may yet change."""
    write_jsonl(self._path, self.rows)

  @property
  def published(self) -> bool:
    """Whether the file of the final name holds these very rows."""
    return self._path.exists() and filecmp.cmp(
      self._path, self._partial, shallow=False
    )

  def finish(self) -> None:
    """Gives the file its final name."""
    self._handle.close()
    os.replace(self._partial, self._path)


def replace_skipped(
  workdir: pathlib.Path, stage: str, rows: Iterable[dict[str, Any]]
) -> None:
  """Rewrites the rows of `stage` in skipped.jsonl, and only those."""
  path = workdir / "skipped.jsonl"
  others = [row for _, row in read_jsonl(path)] if path.exists() else []
  merged = [row for row in others if row.get("stage") != stage]
  merged += [{**row, "stage": stage} for row in rows]
  merged.sort(key=lambda row: _stage_order(row.get("stage")))
  write_jsonl(path, merged)


def trajectory_to_json(value: types.Trajectory) -> dict[str, Any]:
  row = {
    "id": value.id,
    "domain": value.domain,
    "source": value.source,
    "task_id": value.task_id,
    "reward": value.reward,
    "success": value.success,
    "tools": list(value.tools),
    "messages": [message_to_json(m) for m in value.messages],
  }
  if value.extra:
    row["extra"] = value.extra
  return row


def trajectory_from_json(
  row: Any, *, place: str = "trajectory"
) -> types.Trajectory:
  """Reads `trajectory_to_json`'s form; InputError names `place` otherwise."""
  tools = field(row, "tools", list, place)
  for i, tool in enumerate(tools):
    field(tool, "function", dict, f"{place}.tools[{i}]")
  return types.Trajectory(
    id=field(row, "id", str, place),
    domain=field(row, "domain", str, place),
    source=field(row, "source", str, place),
    task_id=field(row, "task_id", str, place),
    reward=field(row, "reward", (int, float), place, default=None),
    success=field(row, "success", bool, place, default=None),
    tools=tuple(tools),
    messages=messages_from_json(
      field(row, "messages", list, place), f"{place}.messages"
    ),
    extra=field(row, "extra", dict, place, default={}),
  )


def message_to_json(value: types.Message) -> dict[str, Any]:
  """OpenAI chat, with empty and default fields left out."""
  row: dict[str, Any] = {"role": value.role, "content": value.content}
  if value.reasoning is not None:
    row["reasoning"] = value.reasoning
  if value.tool_calls:
    row["tool_calls"] = [_call_to_json(call) for call in value.tool_calls]
  if value.tool_call_id is not None:
    row["tool_call_id"] = value.tool_call_id
  if value.context:
    row["context"] = True
  if value.prompt is not None:
    row["prompt"] = [message_to_json(m) for m in value.prompt]
  if value.raw:
    row["raw"] = True
  return row


def messages_from_json(
  rows: list[Any], place: str
) -> tuple[types.Message, ...]:
  """Reads a list of `message_to_json`'s form."""
  return tuple(
    _message_from_json(row, f"{place}[{i}]") for i, row in enumerate(rows)
  )


def candidate_to_json(value: types.Candidate) -> dict[str, Any]:
  return {
    "id": value.id,
    "trajectory_id": value.trajectory_id,
    "turn": value.turn,
    "num_turns": value.num_turns,
    "prefix": value.prefix,
    "demonstration": types.action_to_json(value.demonstration),
  }


def candidate_from_json(
  row: Any, *, place: str = "candidate"
) -> types.Candidate:
  """Reads `candidate_to_json`'s form; InputError names `place` otherwise."""
  return types.Candidate(
    id=field(row, "id", str, place),
    trajectory_id=field(row, "trajectory_id", str, place),
    turn=field(row, "turn", int, place),
    num_turns=field(row, "num_turns", int, place),
    prefix=field(row, "prefix", int, place),
    demonstration=types.action_from_json(
      field(row, "demonstration", dict, place),
      place=f"{place}.demonstration",
    ),
  )


def profile_to_json(value: types.Profile) -> dict[str, Any]:
  return {
    "candidate_id": value.candidate_id,
    "policy": value.policy,
    "group_size": value.group_size,
    "rewards": list(value.rewards),
    "reasons": list(value.reasons),
    "mean": value.mean,
    "variance": value.variance,
    "completions": list(value.completions),
  }


def profile_from_json(row: Any, *, place: str = "profile") -> types.Profile:
  """Reads `profile_to_json`'s form; InputError names `place` otherwise."""
  size = field(row, "group_size", int, place)
  lists = {}
  for key, kind in (
    ("rewards", _NUMBER_OR_NULL),
    ("reasons", str),
    ("completions", str),
  ):
    values = field(row, key, list, place)
    if len(values) != size or not all(_is(v, kind) for v in values):
      raise errors.InputError(
        f"{place}.{key}: {values!r:.80}; expected group_size={size} values"
      )
    lists[key] = tuple(values)
  return types.Profile(
    candidate_id=field(row, "candidate_id", str, place),
    policy=field(row, "policy", str, place),
    group_size=size,
    mean=field(row, "mean", _NUMBER_OR_NULL, place),
    variance=field(row, "variance", _NUMBER_OR_NULL, place),
    **lists,
  )


def pivot_to_json(value: types.Pivot) -> dict[str, Any]:
  return {
    "candidate_id": value.candidate_id,
    "mean": value.mean,
    "variance": value.variance,
    "rule": value.rule,
  }


def pivot_from_json(row: Any, *, place: str = "pivot") -> types.Pivot:
  """Reads `pivot_to_json`'s form; InputError names `place` otherwise."""
  return types.Pivot(
    candidate_id=field(row, "candidate_id", str, place),
    mean=field(row, "mean", (int, float), place),
    variance=field(row, "variance", (int, float), place),
    rule=field(row, "rule", str, place),
  )


def read_trajectories(path: pathlib.Path) -> Iterator[types.Trajectory]:
  """The trajectories of an artifact, one at a time."""
  return _read(path, trajectory_from_json)


def read_candidates(path: pathlib.Path) -> Iterator[types.Candidate]:
  """The candidates of an artifact, one at a time."""
  return _read(path, candidate_from_json)


def read_profiles(path: pathlib.Path) -> Iterator[types.Profile]:
  """The profiles of an artifact, one at a time."""
  return _read(path, profile_from_json)


def read_pivots(path: pathlib.Path) -> Iterator[types.Pivot]:
  """The pivots of an artifact, one at a time."""
  return _read(path, pivot_from_json)


def field(
  value: Any,
  key: str,
  kind: type | tuple[type, ...],
  place: str,
  *,
  default: Any = _REQUIRED,
) -> Any:
  """`value[key]` of type `kind`; a missing or null one is `default`.

  Raises:
    errors.InputError: `value` is no object, the key is missing and has no
      default, or its value is of another type. A bool is no number.
  """
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{place}: {value!r:.80}; expected an object with {key!r}"
    )
  found = value.get(key)
  if found is None and default is not _REQUIRED:
    return default
  if not _is(found, kind):
    got = f"{found!r:.80}" if key in value else "missing"
    raise errors.InputError(f"{place}.{key}: {got}; expected {_name(kind)}")
  return found


def _read(path: pathlib.Path, from_json: Callable[..., Any]) -> Iterator[Any]:
  for number, row in read_jsonl(path):
    yield from_json(row, place=f"{path}:{number}")


def _message_from_json(row: Any, place: str) -> types.Message:
  role = field(row, "role", str, place)
  if role not in types.ROLES:
    raise errors.InputError(
      f"{place}.role: {role!r}; expected one of {', '.join(types.ROLES)}"
    )
  prompt = field(row, "prompt", list, place, default=None)
  calls = field(row, "tool_calls", list, place, default=[])
  return types.Message(
    role=role,
    content=field(row, "content", str, place),
    reasoning=field(row, "reasoning", str, place, default=None),
    tool_calls=tuple(
      _call_from_json(call, f"{place}.tool_calls[{i}]")
      for i, call in enumerate(calls)
    ),
    tool_call_id=field(row, "tool_call_id", str, place, default=None),
    context=field(row, "context", bool, place, default=False),
    prompt=None
    if prompt is None
    else messages_from_json(prompt, f"{place}.prompt"),
    raw=field(row, "raw", bool, place, default=False),
  )


def _call_to_json(call: types.ToolCall) -> dict[str, Any]:
  row = {} if call.id is None else {"id": call.id}
  return {**row, "name": call.name, "arguments": call.arguments}


def _call_from_json(row: Any, place: str) -> types.ToolCall:
  return types.ToolCall(
    name=field(row, "name", str, place),
    arguments=field(row, "arguments", str, place),
    id=field(row, "id", str, place, default=None),
  )


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
  return isinstance(value, kind) and not (
    isinstance(value, bool) and kind is not bool
  )


def _name(kind: type | tuple[type, ...]) -> str:
  kinds = kind if isinstance(kind, tuple) else (kind,)
  return " or ".join(k.__name__ for k in kinds)


def _stage_order(stage: Any) -> int:
  return _STAGES.index(stage) if stage in _STAGES else len(_STAGES)


def _whole_lines(path: pathlib.Path) -> int:
  """How many bytes at the start of `path` are whole lines."""
  whole = 0
  with open(path, "rb") as handle:
    for line in handle:
      if not line.endswith(b"\n"):
        break
      whole += len(line)
  return whole


def _sync(handle: Any) -> None:
  handle.flush()
  os.fsync(handle.fileno())


def _unwritable(path: pathlib.Path, error: OSError) -> errors.InputError:
  return errors.InputError(f"{path}: cannot write: {error.strerror or error}")
