"""Trajectories -> candidates: every assistant turn is one (paper, 3.1).

Candidates come from trajectories that solved their task; one whose outcome is
not recorded is trusted, since it was chosen for SFT.
"""

import collections
from collections.abc import Iterator
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.data import records
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib


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
  """trajectories.jsonl -> candidates.jsonl; the rest -> skipped.jsonl.

  Left out are failed trajectories, turns that demonstrate nothing, and those
  that the policy's chat template cannot hold.
  """
  tokenizer = policy_lib.load_tokenizer(
    policy_lib.starting_path(config), config
  )
  skipped: list[dict[str, Any]] = []
  seen: collections.Counter[str] = collections.Counter()
  count = records.write_jsonl(
    workdir / "candidates.jsonl",
    (
      records.candidate_to_json(candidate)
      for trajectory in _accepted(config, workdir, skipped)
      for candidate in candidates(trajectory)
      if _fits(tokenizer, trajectory, candidate, seen, skipped)
    ),
  )
  records.replace_skipped(workdir, "candidates", skipped)
  logging.info(
    "candidates: %d; %d trajectories or turns left out", count, len(skipped)
  )
  for what, advice in _SAID.items():
    if seen[what]:
      logging.warning("candidates: %d of %d %s", seen[what], count, advice)
  if not count:
    reason = ""
    if skipped:
      reason = f" ({len(skipped)} left out; the first: {skipped[0]['reason']})"
    raise errors.InputError(
      f"{workdir}/trajectories.jsonl: no candidate in it"
      f"{reason}; expected an assistant turn"
      " (data.successful_only=False also takes failed trajectories)"
    )


# What is said once of demonstrations, with their count.
_SAID = {
  "empty_thinking": (
    "demonstrations hold an empty block of thinking, which the chat template"
    " writes where the data have no reasoning: training on them would teach"
    " not to think. data.empty_thinking=drop leaves the block out;"
    ' model.template_kwargs={"enable_thinking": false} puts it in the prompt,'
    " where the template knows that variable"
  ),
  "lost_reasoning": (
    "demonstrations have reasoning that the chat template does not write"
  ),
  "unread": (
    "demonstrations are not read back as what they do: the chat template"
    " writes calls or text otherwise than <tool_call>{JSON}</tool_call>, so"
    " that no sampled action can equal them"
  ),
}


def _fits(tokenizer, trajectory, candidate, seen, skipped):
  """Whether the template holds a turn; counts what is to be said of it."""
  prefix = prefix_messages(trajectory, candidate)
  message = trajectory.messages[candidate.prefix]
  if types.says_nothing(message):
    reason = "an empty demonstration, without text and call"
    skipped.append({"id": candidate.id, "reason": reason})
    return False
  try:
    turn = render.demonstration(tokenizer, prefix, message, trajectory.tools)
  except errors.InputError as error:
    skipped.append({"id": candidate.id, "reason": str(error)})
    return False
  done = base.Completion(turn.ids, np.zeros(len(turn.ids)), "stop")
  _, said = parse.read(tokenizer, done, opened=turn.opened)
  seen["empty_thinking"] += turn.empty_thinking
  seen["lost_reasoning"] += turn.lost_reasoning
  seen["unread"] += not _same(candidate.demonstration, said)
  return True


def _same(action, said):
  """Whether what was read back is the action, blanks and spelling aside."""
  if isinstance(said, types.ParseFailure):
    return False
  read = types.action_of(said)
  return action.content.strip() == read.content.strip() and [
    (call.name, _value(call.arguments)) for call in action.calls
  ] == [(call.name, _value(call.arguments)) for call in read.calls]


def _value(text):
  try:
    return json.loads(text or "{}") or {}
  except (ValueError, RecursionError):
    return text


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
