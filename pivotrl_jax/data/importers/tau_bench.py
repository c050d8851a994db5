"""The first tau-bench: a JSON list of `{task_id, trial, reward, traj}`."""

from collections.abc import Iterator
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

_DOMAINS = ("airline", "retail")


def matches(value: Any) -> bool:
  """Whether a document is a list of runs, or a row is one run."""
  first = value[0] if isinstance(value, list) and value else value
  return isinstance(first, dict) and {"traj", "task_id"} <= set(first)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a run."""
  name = file.name.rpartition("/")[2]
  domain = next((d for d in _DOMAINS if d in name), "")
  tools = (file.beside(f"{domain}/tools.json") if domain else None) or ()
  for line, value in file.rows():
    for i, run in enumerate(value if isinstance(value, list) else [value]):
      where = i if line is None else line
      yield chat.attempt(file, where, _trajectory, file, run, tools)


def _trajectory(file, run, tools):
  reward = records.field(run, "reward", (int, float), "run", default=None)
  task = run.get("task_id")
  return chat.trajectory(
    file,
    "tau_bench",
    f"{task}-{run.get('trial', 0)}",
    chat.messages(run.get("traj"), "traj"),
    tools=tools,
    task_id=f"{file.stem}:{task}",
    reward=reward,
    success=None if reward is None else reward == 1,
  )
