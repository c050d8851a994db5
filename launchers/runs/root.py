"""A sweep's folder: its jobs and their index, one launcher at a time.

ROOT/runs.jsonl   the index: a row a job, rewritten whole by rename
ROOT/NAME/        a run: its workdir, and what attempt.py writes
ROOT/shared/KEY/  work that several runs take over, a workdir too
"""

from collections.abc import Iterable, Sequence
import dataclasses
import pathlib
from typing import Any

from launchers.runs import status
from pivotrl_jax import errors
from pivotrl_jax.data import records

INDEX = "runs.jsonl"
LOCK = ".launcher"


@dataclasses.dataclass(frozen=True)
class Job:
  """What is started as one process: a run, or work that runs share.

  Attributes:
    name: its folder under the root.
    arm: what a run is compared as; "" of shared work.
    seed: of the config.
    config: the config file with its argument.
    overrides: key of the config -> value.
    command: what is run in it.
    stages: what it runs, in order.
    needs: names of the shared work that it takes over.
  """

  name: str
  arm: str
  seed: int
  config: str
  overrides: dict[str, Any]
  command: tuple[str, ...]
  stages: tuple[str, ...]
  needs: tuple[str, ...] = ()

  @property
  def is_warm(self) -> bool:
    """Whether its policy before training is one of its own, by a warm start:
    no base that other arms can be compared with.
    """
    return bool(self.overrides.get("warm_start.steps"))


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the index: the job, and how it stood.

  Attributes:
    job: what it is.
    gone: whether the sweep no longer has it.
    status: how it stood when the row was written.
  """

  job: Job
  gone: bool
  status: status.Status


def given(argv: Sequence[str]) -> pathlib.Path:
  """The folder that a command was given.

  Args:
    argv: its name and arguments, without flags.

  Raises:
    InputError: none, or more than one.
  """
  if len(argv) != 2:
    raise errors.InputError(
      f"{len(argv) - 1} folders; expected one, of a sweep"
    )
  return pathlib.Path(argv[1])


def read(path: pathlib.Path) -> list[Row]:
  """The rows of the index; none where there is no index yet.

  Raises:
    InputError: a row is not ours.
  """
  index = path / INDEX
  if not index.exists():
    return []
  return [_row(row, f"{index}:{n}") for n, row in records.read_jsonl(index)]


def runs(path: pathlib.Path) -> list[Row]:
  """Those of `read` that are runs of the sweep as it is."""
  return [row for row in read(path) if row.job.arm and not row.gone]


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
  """Replaces the index."""
  records.write_jsonl(
    path / INDEX,
    (
      dataclasses.asdict(row.job)
      | {"gone": row.gone}
      | dataclasses.asdict(row.status)
      for row in rows
    ),
  )


def stands(path: pathlib.Path, row: Row) -> status.Status:
  """How a job stands now, from its folder and its row of the index.

  A failure that the folder could not be told, as where its disk is full, is
  in the index alone.
  """
  now = status.read(path / row.job.name, row.job.command, row.job.stages)
  said = row.status
  untold = now.state in ("waiting", "stopped") and said.state == "failed"
  if untold and now.attempts == said.attempts:
    return dataclasses.replace(now, state="failed", cause=said.cause)
  return now


def shown(
  rows: Iterable[Row],
) -> list[tuple[str, status.Status]]:
  """What a table shows: the runs, and shared work that runs or failed."""
  return [
    (row.job.name + " (gone)" * row.gone, row.status)
    for row in rows
    if row.job.arm or row.status.state in ("running", "failed", "stopped")
  ]


def _row(row, place):
  try:
    job = {f.name: row[f.name] for f in dataclasses.fields(Job)}
    for name in ("command", "needs", "stages"):
      job[name] = tuple(job[name])
    stood = {f.name: row[f.name] for f in dataclasses.fields(status.Status)}
    return Row(Job(**job), row["gone"], status.Status(**stood))
  except KeyError as error:
    raise errors.InputError(
      f"{place}: no {error.args[0]!r}; expected a row of a sweep's index"
    ) from error


def changes(before: Sequence[Row], jobs: Sequence[Job]) -> list[str]:
  """What a sweep's text changed since the index was written, a line each."""
  old = {row.job.name: row.job for row in before if row.job.arm}
  new = {job.name: job for job in jobs if job.arm}
  if not old:
    return []
  said = [f"new: {name}" for name in new if name not in old]
  said += [
    f"gone from the sweep, its folder stays: {name}"
    for name in old
    if name not in new
  ]
  for name in new:
    if name in old:
      said += _differences(name, old[name], new[name])
  return said


def _differences(name, old, new):
  was = {"config": old.config} | old.overrides
  now = {"config": new.config} | new.overrides
  return [
    f"changed: {name}: {key} from {was.get(key)} to {now.get(key)}"
    for key in dict.fromkeys([*was, *now])
    if was.get(key) != now.get(key)
  ]
