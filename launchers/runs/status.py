"""How a run stands, from what its folder says. Reads only, at any time."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import time
from typing import Any, Literal

from launchers.runs import attempt
from launchers.runs import locks
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records
from pivotrl_jax.evaluation import suites

State = Literal["waiting", "running", "done", "failed", "stopped"]

# Statuses of a run that was asked to stop: SIGHUP, SIGINT, SIGTERM.
ASKED = (129, 130, 143)
# The status of bad input: the same again would end the same way.
BAD_INPUT = 2


@dataclasses.dataclass(frozen=True)
class Status:
  """How a run stands.

  Attributes:
    state: "stopped" is a run that was interrupted, or whose process is gone;
      it goes on where it was.
    cause: of a failure or a stop, in one line.
    stage: the one under way, or to come.
    step: last step of training.
    reward: mean of that step's rollouts.
    success: share of held-out tasks of the domain, by the trained policy.
    seconds: spent by all attempts whose end is known, and by this one.
    attempts: how many were started.
    ended: exit status of the last attempt, where its end is known.
    revision: commit of the code of the last attempt.
  """

  state: State
  cause: str = ""
  stage: str = ""
  step: int | None = None
  reward: float | None = None
  success: float | None = None
  seconds: float = 0.0
  attempts: int = 0
  ended: int | None = None
  revision: str | None = None


def read(
  workdir: pathlib.Path, command: tuple[str, ...], stages: tuple[str, ...]
) -> Status:
  """How the run in `workdir` stands.

  Args:
    workdir: its folder.
    command: what it is to run; what another command did is not its own.
    stages: what it runs, in order.
  """
  rows = _rows(workdir / attempt.ROWS)
  state, cause, ended = _state(workdir, rows, command)
  finished = workdir_lib.finished(workdir)
  to_come = [name for name in stages if name not in finished]
  if state == "done" and to_come:  # As where a judge was gone.
    state, cause = "stopped", f"{to_come[0]} is not complete; it goes on"
  step, reward = _last_step(workdir / "metrics.jsonl")
  return Status(
    state=state,
    cause=cause,
    stage=to_come[0] if to_come else "",
    step=step,
    reward=reward,
    success=_success(workdir / "evals.jsonl"),
    seconds=_seconds(rows, state),
    attempts=sum("started" in row for row in rows),
    ended=ended,
    revision=next(
      (row["revision"] for row in reversed(rows) if "revision" in row), None
    ),
  )


def is_to_start_again(stands: Status) -> bool:
  """Whether a run that ended may end otherwise if it is started again."""
  return (
    stands.state in ("failed", "stopped")
    and stands.ended != BAD_INPUT
    and stands.ended not in ASKED
  )


def pid(workdir: pathlib.Path) -> int | None:
  """Of the attempt that runs in `workdir`; None where it is not of this host."""
  rows = _rows(workdir / attempt.ROWS)
  if rows and rows[-1].get("host") == socket.gethostname():
    return rows[-1]["pid"]
  return None


def _rows(path):
  """Rows of attempts.jsonl; one that a full disk or a power cut tore is none."""
  try:
    lines = path.read_bytes().splitlines()
  except FileNotFoundError:
    return []
  found = []
  for line in lines:
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return found


def _state(workdir, rows, command):
  if locks.is_held(workdir / attempt.LOCK):
    return "running", "", None
  started = [row for row in rows if "started" in row]
  # Hosts of a run add to its command which of them they are.
  if not started or started[-1]["command"][: len(command)] != list(command):
    return "waiting", "", None
  last = rows[-1]
  if "started" in last:
    return "stopped", "its process is gone", None
  ended, cause = last["status"], last["cause"]
  if ended == 0:
    return "done", "", ended
  return "stopped" if ended in ASKED else "failed", cause, ended


def _seconds(rows, state):
  total, begun = 0.0, None
  for row in rows:
    if "started" in row:
      begun = row["started"]
    elif begun is not None:
      total, begun = total + row["ended"] - begun, None
  if state == "running" and begun is not None:
    total += time.time() - begun
  return round(total, 1)


def _last_step(path):
  """(step, mean reward) of the last whole row of metrics.jsonl."""
  try:
    with open(path, "rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
      data = file.read()
  except FileNotFoundError:
    return None, None
  lines = data[: data.rfind(b"\n") + 1].splitlines()
  if not lines:
    return None, None
  try:
    row = json.loads(lines[-1])
  except ValueError:  # Longer than what was read.
    return None, None
  return row["step"], row.get("rollout/reward_mean")


def _success(path):
  for (policy, suite), rates in successes(path).items():
    if policy == "trained" and suite not in suites.SUITES:
      return sum(rates.values()) / len(rates)
  return None


def successes(path: pathlib.Path) -> dict[tuple[str, str], dict[str, float]]:
  """(policy, suite) -> task -> share of its episodes that succeeded.

  Args:
    path: an evals.jsonl; where there is none, there are no suites.
  """
  if not path.exists():
    return {}
  found: dict[Any, dict[str, list[bool]]] = {}
  for _, row in records.read_jsonl(path):
    tasks = found.setdefault((row["policy"], row["suite"]), {})
    tasks.setdefault(row["task"], []).append(row["success"])
  return {
    key: {task: sum(every) / len(every) for task, every in tasks.items()}
    for key, tasks in found.items()
  }
