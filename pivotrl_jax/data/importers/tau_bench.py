"""The first tau-bench: runs as `{task_id, trial, reward, traj}`."""

from collections.abc import Iterator
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

_DOMAINS = ("airline", "retail")


def matches(value: Any) -> bool:
  """Whether a row is one run."""
  return isinstance(value, dict) and {"traj", "task_id"} <= set(value)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a run."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, place, run):
  del place
  name = file.name.rpartition("/")[2]
  domain = next((d for d in _DOMAINS if d in name), "")
  tools = (file.beside(f"{domain}/tools.json") if domain else None) or ()
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
