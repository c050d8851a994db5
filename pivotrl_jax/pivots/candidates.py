"""Trajectories -> candidates: every assistant turn is one (paper, 3.1).

Candidates come from trajectories that solved their task; one whose outcome is
not recorded is trusted, since it was chosen for SFT.
"""

from collections.abc import Iterator
import pathlib
from typing import Any

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records


def candidates(trajectory: types.Trajectory) -> list[types.Candidate]:
  """One candidate per assistant message that is not mere context."""
  positions = [
    i
    for i, message in enumerate(trajectory.messages)
    if message.role == "assistant" and not message.context
  ]
  return [
    types.Candidate(
      id=f"{trajectory.id}/{turn}",
      trajectory_id=trajectory.id,
      turn=turn,
      num_turns=len(positions),
      prefix=position,
      demonstration=types.action_of(trajectory.messages[position]),
    )
    for turn, position in enumerate(positions)
  ]


def prefix_messages(
  trajectory: types.Trajectory, candidate: types.Candidate
) -> tuple[types.Message, ...]:
  """What the policy sees before the candidate's action, never the action."""
  prompt = trajectory.messages[candidate.prefix].prompt
  if prompt is not None:
    return prompt
  return trajectory.messages[: candidate.prefix]


def run(config: Any, workdir: pathlib.Path) -> None:
  """trajectories.jsonl -> candidates.jsonl; what is left out is named.

  That is trajectories that failed, and turns that demonstrate nothing.
  """
  skipped: list[dict[str, Any]] = []
  count = records.write_jsonl(
    workdir / "candidates.jsonl",
    (
      records.candidate_to_json(candidate)
      for trajectory in _accepted(config, workdir, skipped)
      for candidate in _saying(trajectory, skipped)
    ),
  )
  records.replace_skipped(workdir, "candidates", skipped)
  logging.info(
    "candidates: %d; %d trajectories or turns left out", count, len(skipped)
  )
  if not count:
    raise errors.InputError(
      f"{workdir}/trajectories.jsonl: no candidate in it; expected"
      " successful trajectories (or data.successful_only=False)"
    )


def _saying(
  trajectory: types.Trajectory, skipped: list[dict[str, Any]]
) -> Iterator[types.Candidate]:
  for candidate in candidates(trajectory):
    if types.says_nothing(trajectory.messages[candidate.prefix]):
      skipped.append(
        {
          "file": trajectory.source,
          "id": candidate.id,
          "reason": "an empty demonstration, without text and call",
        }
      )
    else:
      yield candidate


def _accepted(
  config: Any, workdir: pathlib.Path, skipped: list[dict[str, Any]]
) -> Iterator[types.Trajectory]:
  only_successful = config.data.get("successful_only", True)
  for trajectory in records.read_trajectories(workdir / "trajectories.jsonl"):
    if only_successful and trajectory.success is False:
      skipped.append(
        {
          "file": trajectory.source,
          "id": trajectory.id,
          "reason": "the trajectory did not solve its task",
        }
      )
    else:
      yield trajectory
