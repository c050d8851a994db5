"""Trajectories as the model will see them, as text for a terminal.

Prompts and demonstrations come from the functions that a run renders with, so
what is shown is what is trained on.
"""

from collections.abc import Iterator
import json

import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.pivots import candidates
from pivotrl_jax.pivots import rollouts

# Most characters of a part that are shown, at its start and at its end.
_HEAD, _TAIL = 1200, 600


def trajectory(
  tokenizer: tokenizer_lib.Tokenizer, shown: types.Trajectory
) -> str:
  """All turns of a trajectory: prompt, demonstration, their tokens.

  Of a prompt only what it does not share, token for token, with the turn
  before it and that turn's demonstration.
  """
  return "\n".join(_lines(tokenizer, shown))


def _lines(tokenizer, shown) -> Iterator[str]:
  yield f"=== {shown.id} ({shown.source})"
  yield (
    f"task {shown.task_id}, reward {shown.reward}, success {shown.success},"
    f" {len(shown.messages)} messages"
  )
  names = [tool["function"].get("name") for tool in shown.tools]
  yield f"tools: {', '.join(map(str, names)) or 'none'}"
  if shown.success is False:
    yield (
      "no candidates while data.successful_only: the trajectory did not solve"
      " its task"
    )
  before = np.zeros(0, np.int32)
  for candidate in candidates.candidates(shown):
    yield f"--- turn {candidate.turn} of {candidate.num_turns}"
    if types.says_nothing(shown.messages[candidate.prefix]):
      yield "no candidate: an empty demonstration, without text and call"
      continue
    try:
      prompt = rollouts.render_turn(tokenizer, shown, candidate).prompt
      action = rollouts.render_demonstration(tokenizer, shown, candidate)
    except errors.InputError as error:
      yield f"no candidate: {error}"
      continue
    shared = _shared(before, prompt)
    as_above = f", the first {shared} as above" if shared else ""
    yield f"prompt, {len(prompt)} tokens{as_above}:"
    yield _short(tokenizer.decode(prompt[shared:]))
    yield f"demonstration, {len(action)} tokens:"
    yield _short(tokenizer.decode(action))
    before = np.concatenate([prompt, action])
  yield from _others(shown)


def _others(shown):
  """The assistant messages that are no candidates."""
  for i, message in enumerate(shown.messages):
    if message.role == "assistant" and message.context:
      calls = [f"{c.name}({c.arguments})" for c in message.tool_calls]
      said = " ".join(filter(None, [message.content, *calls]))
      yield (f"context, no candidate: messages[{i}]: {json.dumps(said)[:160]}")


def _shared(before: np.ndarray, prompt: np.ndarray) -> int:
  """How many leading tokens are the same."""
  length = min(len(before), len(prompt))
  differ = before[:length] != prompt[:length]
  return int(np.argmax(differ)) if differ.any() else length


def _short(text: str) -> str:
  if len(text) <= _HEAD + _TAIL:
    return text
  left_out = len(text) - _HEAD - _TAIL
  return f"{text[:_HEAD]}\n[... {left_out} characters ...]\n{text[-_TAIL:]}"
