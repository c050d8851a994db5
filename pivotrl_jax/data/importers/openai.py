"""OpenAI chat fine-tuning rows: `messages`, `tools`, one trajectory each."""

from collections.abc import Iterator
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

_IDS = ("id", "uuid", "trajectory_id", "simulation_id", "instance_id")


def matches(value: Any) -> bool:
  """Whether a row or document is of this format."""
  return (
    isinstance(value, dict)
    and isinstance(value.get("messages"), list)
    and bool(value["messages"])
    and all(isinstance(m, dict) and "role" in m for m in value["messages"])
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row."""
  return chat.each_row(file, trajectory)


def trajectory(
  file: files.File, line: int | None, row: Any
) -> types.Trajectory:
  """The row's chat, with its own id, task and reward where it has them.

  `weight: 0` on an assistant message, OpenAI's mark of what not to train on,
  makes it context.
  """
  own_id = next((row[key] for key in _IDS if row.get(key)), line)
  reward = records.field(row, "reward", (int, float), "row", default=None)
  success = records.field(row, "success", bool, "row", default=None)
  if success is None and reward is not None:
    success = reward >= 1
  return chat.trajectory(
    file,
    "openai",
    own_id,
    chat.messages(records.field(row, "messages", list, "row")),
    tools=row.get("tools") or (),
    task_id=row.get("task_id") or row.get("instance_id"),
    reward=reward,
    success=success,
  )
