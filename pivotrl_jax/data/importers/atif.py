"""ATIF, the Agent Trajectory Interchange Format of Harbor (any v1).

An agent step is a turn; copied steps are context. After a step that says the
context was summarised, the history starts anew: turns from there on keep
their own prompt.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known

_ROLES = {"system": "system", "user": "user", "agent": "assistant"}
_SUMMARY = "Performed context summarization"
# Keys of a document and of a step that are read, or say how the run went.
_DOCUMENT = (
  "schema_version", "session_id", "trajectory_id", "agent", "steps", "notes",
  "final_metrics", "continued_trajectory_ref", "extra",
  "subagent_trajectories",
)  # fmt: skip
_STEP = (
  "step_id", "source", "message", "is_copied_context", "metrics", "extra",
  "reasoning_effort", "llm_call_count",
)  # fmt: skip
_RESULT = ("source_call_id", "content", "subagent_trajectory_ref", "extra")
_AGENT_STEP = ("tool_calls", "reasoning_content", "observation")


def matches(value: Any) -> bool:
  """Whether a document is an ATIF trajectory."""
  return isinstance(value, dict) and str(
    value.get("schema_version", "")
  ).startswith("ATIF-v1.")


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a document, and one for each sub-agent's inside of it."""
  for place, value in file.rows():
    yield chat.one_row(file, place, value, _trajectory)
    inner = value.get("subagent_trajectories") if matches(value) else None
    for n, found in enumerate(inner if isinstance(inner, list) else ()):
      own_id = f"subagent{n}" if place is None else f"{place}-subagent{n}"
      yield chat.attempt(file, own_id, _trajectory, file, own_id, found)


def _trajectory(file, own_id, value):
  agent = records.field(value, "agent", dict, "file")
  known.refuse_others(value, "file", _DOCUMENT, known.COLUMNS)
  messages: list[types.Message] = []
  start = 0  # Where the history that the agent still sees begins.
  for i, step in enumerate(records.field(value, "steps", list, "file")):
    place = f"steps[{i}]"
    source = records.field(step, "source", str, place)
    said = chat.text(step.get("message"), f"{place}.message")
    if source == "system" and said.startswith(_SUMMARY):
      start = len(messages)  # Its observation only refers to who wrote it.
      continue
    for message in _step(step, source, said, place):
      if start and message.role == "assistant":
        opening = messages[:1]  # The task stays in front of the summary.
        message = dataclasses.replace(
          message, prompt=tuple([*opening, *messages[start:]])
        )
      messages.append(message)
  # A trial's result is that of its one trajectory.
  reward, success = _outcome(file) if own_id is None else (None, None)
  return chat.trajectory(
    file,
    "atif",
    own_id,
    messages,
    tools=agent.get("tool_definitions") or (),
    reward=reward,
    success=success,
  )


def _step(
  step: dict[str, Any], source: str, said: str, place: str
) -> Iterator[types.Message]:
  if source not in _ROLES:
    raise errors.InputError(
      f"{place}.source: {source!r}; expected {', '.join(_ROLES)}"
    )
  if source != "agent":
    known.refuse_others(step, place, _STEP, known.METADATA)
    yield types.Message(_ROLES[source], said)
    return
  known.refuse_others(step, place, _STEP, _AGENT_STEP, known.METADATA)
  thought, said = chat.split_think(said)
  given = records.field(step, "reasoning_content", str, place, default=None)
  calls = records.field(step, "tool_calls", list, place, default=[])
  yield types.Message(
    "assistant",
    said,
    reasoning=given or thought,
    tool_calls=tuple(
      _call(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(calls)
    ),
    context=bool(step.get("is_copied_context")),
  )
  observation = records.field(step, "observation", dict, place, default={})
  results = records.field(observation, "results", list, place, default=[])
  for n, result in enumerate(results):
    here = f"{place}.observation.results[{n}]"
    answered = records.field(result, "source_call_id", str, here, default=None)
    known.refuse_others(result, here, _RESULT, known.METADATA)
    answer = chat.text(result.get("content"), here)
    if answered is None:
      yield types.Message("user", answer)
    else:
      yield types.Message("tool", answer, tool_call_id=answered)


def _call(value, place):
  return types.ToolCall(
    name=records.field(value, "function_name", str, place),
    arguments=chat.arguments_text(value.get("arguments")),
    id=records.field(value, "tool_call_id", str, place, default=None),
  )


def _outcome(file):
  """Reward and success from the trial's `result.json`, if it is there."""
  result = file.beside("result.json") or {}
  verdict = records.field(
    result, "verifier_result", dict, "result.json", default={}
  )
  rewards = records.field(
    verdict, "rewards", dict, "verifier_result", default=verdict
  )
  reward = records.field(
    rewards, "reward", (int, float), "verifier_result", default=None
  )
  return reward, None if reward is None else reward >= 1
