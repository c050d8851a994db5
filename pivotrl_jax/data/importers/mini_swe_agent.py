"""mini-swe-agent `.traj.json` (trajectory_format mini-swe-agent-1.1)."""

from collections.abc import Iterator
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

_FORMAT = "mini-swe-agent-1.1"


def matches(value: Any) -> bool:
  """Whether a document is a trajectory of mini-swe-agent, of any version."""
  return isinstance(value, dict) and str(
    value.get("trajectory_format", "")
  ).startswith("mini-swe-agent")


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a file."""
  return chat.each_row(file, _trajectory)


def _trajectory(file, line, value):
  del line
  if value.get("trajectory_format") != _FORMAT:
    raise errors.InputError(
      f"trajectory_format: {value.get('trajectory_format')!r}; expected"
      f" {_FORMAT!r}"
    )
  found = records.field(value, "messages", list, "file")
  # The `exit` message closes the file; it is none of the chat.
  seen = [
    m for m in found if not isinstance(m, dict) or m.get("role") != "exit"
  ]
  instance = records.field(value, "instance_id", str, "file", default=None)
  success = _resolved(file, instance)
  return chat.trajectory(
    file,
    "mini_swe_agent",
    None,
    chat.messages(seen, also=("extra",)),
    tools=file.beside("tools.json") or (),
    task_id=instance,
    reward=success,
    success=success,
  )


def _resolved(file, instance):
  """The SWE-bench harness's answer, from `FOLDER.report.json`."""
  report = file.beside(f"{file.folder}.report.json")
  if not isinstance(report, dict) or "resolved_ids" not in report:
    return None
  if instance not in report.get("submitted_ids", [instance]):
    return None
  return instance in report["resolved_ids"]
