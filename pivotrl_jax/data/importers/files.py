"""Containers: files on disk -> rows, each with its place.

What is in a file is read by its content, what a file is for by its name:
JSON, JSON lines (UTF-8, with or without a byte order mark), parquet, Arrow,
and any of these under gzip or zstd. A reader of a format gets a `File` and
never sees the container:

  for place, value in file.rows():
    if isinstance(value, files.Skip):  # What could not be read there.
      yield value

`place` is the number of the row, from 1; None where the file is one document.
A list of rows gives its elements, and so does an object around such a list.
A format whose rows stand alone uses `chat.each_row`, which does the above.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import fnmatch
import itertools
import json
import pathlib
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import known

_LINES = (".jsonl", ".ndjson")
_ARROW = (".parquet", ".arrow", ".feather")
# Suffixes that hold data.
_SUFFIXES = (".json", ".traj", *_LINES, *_ARROW)
_PACKED = (".gz", ".zst", ".zstd")
# Files of a folder that speak of the data and are none.
_DOCUMENTS = ("*.md", "README*", "LICENSE*", "NOTICE*", "CITATION*")
# Files that describe the tasks, the outcomes or the columns of trajectories.
_SIDE_FILES = (
  "tools.json",
  "user_tools.json",
  "*tasks.json",
  "db.json",
  "flights.json",
  "reservations.json",
  "users.json",
  "outcomes.json",
  "*report.json",
  "dataset_dict.json",
  "dataset_info.json",
  "dataset_infos.json",
  "state.json",
)
# How far up from a data file its side files are looked for.
_LEVELS = 3
_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
# How a file starts -> why it holds no rows that could be read.
_STARTS = (
  (b"version https://git-lfs", "a Git LFS pointer; expected the file itself"),
  (b"\xff\xfe", "UTF-16; expected UTF-8"),
  (b"\xfe\xff", "UTF-16; expected UTF-8"),
  (b"PK\x03\x04", "a zip archive; expected the files in it"),
)

Place = int | str | None
Row = tuple[Place, Any]


@dataclasses.dataclass(frozen=True)
class Skip:
  """What was left out: `where` is a row or an id, None for the whole file."""

  file: str
  where: str | None
  reason: str


@dataclasses.dataclass(frozen=True)
class File:
  """One data file, parsed.

  Attributes:
    name: its path below what was imported, for people and ids.
    rows: `(place, value)` of each row; a `Skip` for what could not be read.
    beside: finds a side file by its relative path, next to the data file or
      above it: parsed JSON, the text of another file, None if absent.
    folder: the name of the folder it is in.
    parts: of a log of several files, these; () of a file by itself.
    foreign: why a row is not of the format that the file is read as, None if
      it is.
    arrow: whether the rows come from a table, which fills the keys that a
      row does not have with nulls.
  """

  name: str
  rows: Callable[[], Iterator[Row]]
  beside: Callable[[str], Any] = lambda name: None
  folder: str = ""
  parts: tuple["File", ...] = ()
  foreign: Callable[[Any], str | None] = lambda value: None
  arrow: bool = False

  @property
  def stem(self) -> str:
    """`name` without the suffixes of its format."""
    stem = _unpacked(self.name)
    for suffix in (*_SUFFIXES, ".traj", ".rollouts", ".trajectory"):
      stem = stem.removesuffix(suffix)
    return stem


def open_file(
  path: pathlib.Path, name: str, is_row: Callable[[Any], bool]
) -> File:
  """A `File` that is read when its rows are asked for.

  Args:
    path, name: the file, and what it is called.
    is_row: whether a value is of some format; others are looked into.
  """
  folder = path.resolve().parent
  return File(
    name,
    lambda: _rows(path, name, is_row),
    lambda side: _beside(folder, side),
    folder.name,
    arrow=_unpacked(path.name).endswith(_ARROW),
  )


def joined(parts: Sequence[File]) -> File:
  """The files of one log as a `File` with `parts`; one file is itself."""
  if len(parts) == 1:
    return parts[0]
  folder = parts[0].name.rpartition("/")[0]
  return dataclasses.replace(
    parts[0], name=folder or parts[0].folder, parts=tuple(parts)
  )


def walk(
  path: pathlib.Path,
) -> Iterator[tuple[pathlib.Path | None, str, str]]:
  """Yields `(path, name, reason)` of the files at `path`, sorted.

  The reason is why a file is not to be read, "" for a data file. Documents
  and what belongs to hidden folders are passed over.

  Raises:
    errors.InputError: there is nothing at `path`.
  """
  if path.is_file():
    yield path, path.name, ""
    return
  if not path.is_dir():
    raise errors.InputError(f"{path}: no such file or folder")
  for found in sorted(path.rglob("*")):
    name = found.relative_to(path)
    if not found.is_file() or _is_document(found):
      continue
    is_data = _unpacked(found.name).endswith(_SUFFIXES)
    if any(part.startswith((".", "__MACOSX")) for part in name.parts):
      if is_data:
        yield found, str(name), "a hidden file"
    elif is_data:
      yield found, str(name), ""
    else:
      expected = ", ".join((*_SUFFIXES, *_PACKED))
      reason = f"suffix {found.suffix!r}; expected one of {expected}"
      yield found, str(name), reason


def is_side_file(path: pathlib.Path) -> bool:
  """Whether a file belongs to trajectories without being any."""
  return any(
    fnmatch.fnmatch(_unpacked(path.name), pattern) for pattern in _SIDE_FILES
  )


def found(value: Any) -> str:
  """What a value is, for the line that refuses it."""
  if isinstance(value, dict):
    keys = ", ".join(map(str, itertools.islice(value, 12)))
    return f"an object with the keys {keys or 'none'}"
  if isinstance(value, list):
    inside = found(value[0]) if value else "nothing"
    return f"a list of {inside}"
  return f"{value!r:.60}"


def _unpacked(name: str) -> str:
  for suffix in _PACKED:
    name = name.removesuffix(suffix)
  return name


def _is_document(path):
  return any(fnmatch.fnmatch(path.name, pattern) for pattern in _DOCUMENTS)


def _rows(path, name, is_row) -> Iterator[Row]:
  """The rows of a file; what cannot be read costs itself only."""
  empty = True
  try:
    for place, value in _values(path, name):
      empty = False
      if isinstance(value, Skip):
        yield place, value
      else:
        yield from _opened(place, value, name, is_row)
  except errors.InputError as error:
    yield None, Skip(name, None, str(error))
    return
  if empty:
    yield None, Skip(name, None, "empty file")


def _opened(place, value, name, is_row) -> Iterator[Row]:
  """The rows inside of a value that is none itself."""
  if is_row(value):
    yield place, value
    return
  if isinstance(value, dict):
    inside = _inside(value, is_row)
    if inside is None:
      yield place, value
      return
    key, value = inside, value
    others = {k: v for k, v in value.items() if k != key}
    try:
      known.refuse_others(others, "file", known.COLUMNS, _WRAPPING)
    except errors.InputError as error:
      yield place, Skip(name, _text(place), f"{error}, beside {key}")
      return
    value = value[key]
  if not isinstance(value, list):
    yield place, value
  elif not value:
    yield place, Skip(name, _text(place), "an empty list")
  else:
    for number, element in enumerate(value, 1):
      here = number if place is None else f"{place}[{number}]"
      yield _row_of(here, element, name)


# What stands around the rows that an API gives.
_WRAPPING = (
  "features", "num_rows_total", "num_rows_per_page", "partial", "columns",
  "count", "description", "info", "total", "page", "schema_version",
)  # fmt: skip


def _inside(value: dict[str, Any], is_row) -> str | None:
  """The one key of an object that holds a list of rows."""
  keys = [
    key
    for key, found in value.items()
    if isinstance(found, list)
    and any(is_row(_row_of(None, element, "")[1]) for element in found)
  ]
  return keys[0] if len(keys) == 1 else None


def _row_of(place, element, name):
  """`(place, row)` of an element, which may be `{"row": .., "row_idx": ..}`."""
  if isinstance(element, dict) and isinstance(element.get("row"), dict):
    if {"row_idx", "truncated_cells"} & set(element):
      if element.get("truncated_cells"):
        reason = f"truncated_cells: {element['truncated_cells']!r:.60}"
        return place, Skip(name, _text(place), reason)
      return place, element["row"]
  return place, element


def _text(place: Place) -> str | None:
  return None if place is None else str(place)


def _values(path, name) -> Iterator[Row]:
  """The values of a container: rows of a table, lines, or one document."""
  start = _read(path, 64)
  for sign, reason in _STARTS:
    if start.startswith(sign):
      raise errors.InputError(reason)
  if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
    yield from _table_rows(path)
  elif _unpacked(path.name).endswith(_ARROW) and start:
    raise errors.InputError(
      f"cannot read: starts with {start[:8]!r}; expected parquet or Arrow"
    )
  elif b"\0" in start[:4]:
    raise errors.InputError("UTF-16, UTF-32 or binary; expected UTF-8")
  else:
    _check_encoding(path)
    yield from _text_values(path, name)


def _read(path: pathlib.Path, size: int = -1) -> bytes:
  try:
    with records.open_binary(path) as handle:
      return handle.read(size)
  except records.UNREADABLE as error:
    raise _unreadable(error) from error


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Yields `(number from 1, line)` of the lines that are not blank."""
  try:
    with records.open_binary(path) as handle:
      for number, line in enumerate(handle, 1):
        line = line.removeprefix(_BOM)
        if line.strip():
          yield number, line
  except records.UNREADABLE as error:
    raise _unreadable(error) from error


def _unreadable(error):
  reason = getattr(error, "strerror", None) or error
  return errors.InputError(f"cannot read: {reason}")


def _check_encoding(path):
  """InputError if the first character that is not ASCII is no UTF-8 either.

  It says what the file is written in; later ones cost their own row.
  """
  line = 1
  for block in _blocks(path):
    if block.isascii():
      line += block.count(b"\n")
      continue
    found = re.search(rb"[\x80-\xff]", block)
    first = block[found.start() : found.start() + 4]
    # Less than four bytes may be a character that the block's end cuts.
    if len(first) == 4 and not any(_is_utf8(first[:n]) for n in (2, 3, 4)):
      line += block.count(b"\n", 0, found.start())
      raise errors.InputError(
        f"line {line}: byte {first[0]:#x} is not UTF-8; expected UTF-8"
      )
    return


def _blocks(path):
  try:
    with records.open_binary(path) as handle:
      block = handle.read(_BLOCK).removeprefix(_BOM)
      while block:
        yield block
        block = handle.read(_BLOCK)
  except records.UNREADABLE as error:
    raise _unreadable(error) from error


def _is_utf8(text):
  try:
    text.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def _text_values(path, name) -> Iterator[Row]:
  """The values of JSON text: each line's, or the whole file's.

  Lines are told by the first two, whatever the suffix: a document that ends
  with its first line has no second.
  """
  first = list(itertools.islice(_lines(path), 2))
  if not first:
    return
  is_lines = _unpacked(path.name).endswith(_LINES)
  values = [_decoded(line, name) for _, line in first]
  if len(first) == 2 and not isinstance(values[0], Skip):
    yield from _line_values(path, name)
    return
  document = values[0] if len(first) == 1 else _decoded(_read(path), name)
  if not isinstance(document, Skip):
    yield first[0][0] if is_lines and len(first) == 1 else None, document
  elif is_lines or isinstance(values[-1], dict):
    yield from _line_values(path, name)
  else:
    yield None, document


def _line_values(path, name):
  for number, line in _lines(path):
    value = _decoded(line, name)
    if isinstance(value, Skip):
      cut = "" if line.endswith(b"\n") else "truncated last line? "
      value = dataclasses.replace(
        value, where=str(number), reason=cut + value.reason
      )
    yield number, value


def _decoded(text: bytes, name: str) -> Any:
  """The value of JSON text, or a Skip that says why it has none."""
  try:
    return records.decode(text, "")
  except errors.InputError as error:
    return Skip(name, None, str(error).removeprefix(": "))


def _table_rows(path: pathlib.Path) -> Iterator[Row]:
  """The rows of a parquet or Arrow file, or of an Arrow stream."""
  # They take a while to import.
  import pyarrow
  from pyarrow import parquet

  number = 0
  try:
    with records.open_binary(path) as handle:
      for batch in _batches(handle, pyarrow, parquet):
        for row in batch.to_pylist():
          number += 1
          yield number, _as_json(row)
  except (
    *records.UNREADABLE,
    pyarrow.ArrowException,
    UnicodeDecodeError,
  ) as error:
    raise errors.InputError(
      f"cannot read after row {number}: {str(error).splitlines()[0]}"
    ) from error


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
  """A row of a table as JSON lines would have it: times as text."""
  return json.loads(json.dumps(row, default=str))


def _batches(handle, pyarrow, parquet):
  start = handle.peek(8)
  if start.startswith(b"PAR1"):
    return parquet.ParquetFile(handle).iter_batches()
  if start.startswith(b"ARROW1"):
    reader = pyarrow.ipc.open_file(handle)
    return map(reader.get_batch, range(reader.num_record_batches))
  return pyarrow.ipc.open_stream(handle)


def _beside(folder: pathlib.Path, name: str) -> Any:
  for level in [folder, *folder.parents][:_LEVELS]:
    for found in (level / name, level / f"{name}.gz"):
      if found.is_file():
        text = _read(found)
        if name.endswith(".json"):
          return records.decode(text, str(found))
        return text.decode("utf-8", "replace")
  return None
