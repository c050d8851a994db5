"""Trajectory -> one candidate per assistant turn (eq. 3)."""

import pathlib
from typing import Any

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records


def candidates(trajectory: types.Trajectory) -> list[types.Candidate]:
  """Every assistant turn that the policy could have produced.

  A message marked `context` (a canned greeting, a copied history) is none.
  """
  turns = [
      (i, m)
      for i, m in enumerate(trajectory.messages)
      if m.role == "assistant" and not m.context
  ]
  return [
      types.Candidate(
          id=f"{trajectory.id}/{turn}",
          trajectory_id=trajectory.id,
          turn=turn,
          num_turns=len(turns),
          prefix=i,
          demonstration=types.action_of(message),
      )
      for turn, (i, message) in enumerate(turns)
  ]


def prefix_messages(
    trajectory: types.Trajectory, candidate: types.Candidate
) -> tuple[types.Message, ...]:
  """What the policy sees at the candidate: never any of its own turn."""
  recorded = trajectory.messages[candidate.prefix].prompt
  if recorded is not None:
    return recorded
  return trajectory.messages[: candidate.prefix]


def run(config: Any, workdir: pathlib.Path) -> None:
  """trajectories.jsonl -> candidates.jsonl.

  Only successful trajectories are taken (`data.successful_only`); one whose
  outcome was not recorded counts as successful.
  """
  found: list[types.Candidate] = []
  skipped = []
  count = 0
  for trajectory in records.read_trajectories(workdir / "trajectories.jsonl"):
    if config.data.successful_only and trajectory.success is False:
      skipped.append({"id": trajectory.id, "reason": "not successful"})
      continue
    turns = candidates(trajectory)
    if not turns:
      skipped.append({"id": trajectory.id, "reason": "no assistant turn"})
      continue
    found += turns
    count += 1
  if not found:
    raise errors.InputError(
        f"{workdir}/trajectories.jsonl: no candidate; expected a successful"
        " trajectory with an assistant turn (or data.successful_only=False)"
    )
  records.write_jsonl(
      workdir / "candidates.jsonl", map(records.candidate_to_json, found)
  )
  records.replace_skipped(workdir, "candidates", skipped)
  logging.info(
      "candidates: %d turns of %d trajectories, %d left out",
      len(found), count, len(skipped),
  )  # fmt: skip
