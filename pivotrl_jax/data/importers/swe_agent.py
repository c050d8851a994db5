"""SWE-agent `.traj` files: function calling, and actions written as text.

A text action (a code block, or a `<command>` element) becomes one call
`bash(command)`, SWE-agent's own name for it where it calls functions, and the
observation its tool result. Where a step's exact prompt is logged and is not
simply the history (old observations replaced), the turn keeps it.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files

# What a step's entry says besides its message; its content holds the thought.
_KEYS = ("action", "is_demo", "message_type", "thought", "tool_call_ids")


def matches(value: Any) -> bool:
  """Whether a document is a SWE-agent trajectory."""
  return (
    isinstance(value, dict)
    and isinstance(value.get("history"), list)
    and any("agent" in m for m in value["history"] if isinstance(m, dict))
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a file."""
  return chat.each_row(file, trajectory)


def trajectory(
  file: files.File, line: int | None, value: Any
) -> types.Trajectory:
  """The chat of one `.traj` document; success from `INSTANCE.report.json`."""
  del line
  history = tuple(
    _chat(records.field(value, "history", list, "file"), "history")
  )
  steps = records.field(value, "trajectory", list, "file", default=[])
  instance = file.stem.rpartition("/")[2]
  success = chat.reported(file, f"{instance}.report.json")
  return chat.trajectory(
    file,
    "swe_agent",
    None,
    _with_prompts(history, steps),
    task_id=records.field(value, "environment", str, "file", default=None),
    reward=success,
    success=success,
  )


def _chat(entries: Sequence[Any], place: str) -> list[types.Message]:
  """Messages of history entries, demonstrations left out."""
  found = []
  for i, entry in enumerate(entries):
    here = f"{place}[{i}]"
    role = records.field(entry, "role", str, here)
    if entry.get("is_demo") or entry.get("message_type") == "demonstration":
      continue
    message = chat.message(entry, here, also=_KEYS)
    if role == "assistant" and not message.tool_calls and entry.get("action"):
      message = _as_call(entry, message, here, f"call_{len(found)}")
    elif role == "user" and found and _is_text_call(found[-1]):
      message = types.Message(
        "tool", message.content, tool_call_id=found[-1].tool_calls[0].id
      )
    found.append(message)
  return found


def _as_call(entry, message, place, call_id):
  """A reply whose text is a thought and a command, as the agent split it."""
  command = records.field(entry, "action", str, place).strip("\n")
  thought = records.field(entry, "thought", str, place, default=None)
  return types.Message(
    "assistant",
    (message.content if thought is None else thought).strip(),
    reasoning=message.reasoning,
    context=message.context,
    tool_calls=(
      types.ToolCall(
        "bash",
        json.dumps({"command": command}, ensure_ascii=False),
        f"text_{call_id}",
      ),
    ),
  )


def _is_text_call(message):
  return bool(message.tool_calls) and str(message.tool_calls[0].id).startswith(
    "text_call_"
  )


def _with_prompts(history, steps):
  """Gives each turn the prompt that was logged, where it differs."""
  turns = [i for i, m in enumerate(history) if m.role == "assistant"]
  found = list(history)
  # A last step without a reply in the history has no turn to go to.
  for step, position in enumerate(turns[: len(steps)]):
    logged = _logged_prompt(steps, step)
    prompt = tuple(_chat(logged, f"trajectory[{step}]")) if logged else None
    # A longer one would hold the reply itself: the label, in its own prefix.
    if prompt and len(prompt) <= position and prompt != history[:position]:
      found[position] = dataclasses.replace(history[position], prompt=prompt)
  return found


def _logged_prompt(steps, step):
  """`query` is what the step saw; `messages` is logged after its reply and
  observation, so what it saw is that of the step before."""
  query = records.field(steps[step], "query", list, "step", default=None)
  if query or step == 0:
    return query
  return records.field(steps[step - 1], "messages", list, "step", default=None)
