"""Data files on disk -> parsed content, as the importers take it."""

from collections.abc import Callable, Iterator
import dataclasses
import fnmatch
import pathlib
import zlib
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax.data import records

# Suffixes that hold data; other files of a folder are documentation.
_SUFFIXES = (".json", ".jsonl", ".traj", ".parquet")
# Files that describe the tasks or the outcomes of trajectories beside them.
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
)
# How far up from a data file its side files are looked for.
_LEVELS = 3

Row = tuple[int | None, Any]


@dataclasses.dataclass(frozen=True)
class Skip:
  """What was left out: `where` is a line or an id, None for the whole file."""

  file: str
  where: str | None
  reason: str


@dataclasses.dataclass(frozen=True)
class File:
  """One data file, parsed.

  Attributes:
    name: its path below what was imported, for people and ids.
    rows: `(line, value)` of each line, or one `(None, value)` of a document.
    beside: finds a side file by its relative path, next to the data file or
      above it: parsed JSON, the text of another file, None if absent.
    folder: the name of the folder it is in.
  """

  name: str
  rows: Callable[[], Iterator[Row]]
  beside: Callable[[str], Any] = lambda name: None
  folder: str = ""

  @property
  def stem(self) -> str:
    """`name` without the suffixes of its format."""
    stem = self.name.removesuffix(".gz")
    for suffix in (*_SUFFIXES, ".traj", ".rollouts", ".trajectory"):
      stem = stem.removesuffix(suffix)
    return stem


def open_file(path: pathlib.Path, name: str) -> File:
  """A `File` that is read when its rows are asked for."""
  return File(
    name,
    lambda: _rows(path),
    lambda side: _beside(path.resolve().parent, side),
    path.resolve().parent.name,
  )


def walk(path: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
  """Yields `(path, name)` of the data files at `path`, sorted.

  Raises:
    errors.InputError: there is nothing at `path`.
  """
  if path.is_file():
    yield path, path.name
    return
  if not path.is_dir():
    raise errors.InputError(f"{path}: no such file or folder")
  for found in sorted(path.rglob("*")):
    plain = found.name.removesuffix(".gz")
    if found.is_file() and plain.endswith(_SUFFIXES):
      yield found, str(found.relative_to(path))


def is_side_file(path: pathlib.Path) -> bool:
  """Whether a file belongs to trajectories without being any."""
  plain = path.name.removesuffix(".gz")
  return any(fnmatch.fnmatch(plain, pattern) for pattern in _SIDE_FILES)


def _rows(path: pathlib.Path) -> Iterator[Row]:
  plain = path.name.removesuffix(".gz")
  if plain.endswith(".parquet"):
    yield from _parquet_rows(path)
  elif plain.endswith(".jsonl"):
    yield from records.read_jsonl(path)
  else:
    yield None, records.decode(_bytes(path), str(path))


def _bytes(path: pathlib.Path) -> bytes:
  try:
    with records.open_binary(path) as handle:
      return handle.read()
  except (OSError, EOFError, zlib.error) as error:
    raise records.unreadable(path, error) from error


def _parquet_rows(path: pathlib.Path) -> Iterator[Row]:
  try:
    from pyarrow import parquet  # Optional: only for parquet input.
  except ImportError as error:
    raise errors.InputError(
      f"{path}: parquet needs pyarrow, which is not installed; expected"
      " JSON, JSONL or `pip install pyarrow`"
    ) from error
  try:
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
      for row in batch.to_pylist():
        number += 1
        yield number, row
  except (OSError, ValueError) as error:
    raise records.unreadable(path, error) from error


def _beside(folder: pathlib.Path, name: str) -> Any:
  for level in [folder, *folder.parents][:_LEVELS]:
    for found in (level / name, level / f"{name}.gz"):
      if found.is_file():
        text = _bytes(found)
        if name.endswith(".json"):
          return records.decode(text, str(found))
        return text.decode("utf-8")
  return None
