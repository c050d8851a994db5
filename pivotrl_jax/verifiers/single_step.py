"""Tool use by argument comparison: the expected call, or talk when due.

The behaviour of NeMo Gym's single_step_tool_use_with_argument_comparison
("compat"), and the same with its defects mended ("default").
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from pivotrl_jax import types
from pivotrl_jax.verifiers import arguments

DEFAULTS = {
  "word_count_similarity_threshold": 0.1,
  "floating_point_comparison_threshold": 1e-6,
  "parallel_tool_call_rewarding": False,
  "allow_subset": False,
  "allow_superset": False,
  "parallel_tool_call_reward_mode": "binary_strict",
  # 0: any message is as right as the demonstrated one, as in the original.
  "message_similarity_threshold": 0.0,
}


def verify(
  demonstration: types.Action,
  action: types.Action,
  *,
  tools: Sequence[Mapping[str, Any]] = (),
  config: Mapping[str, Any],
  setting: str,
  row: Mapping[str, Any],
  judge: Any = None,
) -> types.Verdict:
  """See the module; calls beat text on both sides."""
  del tools, row, judge
  if demonstration.type == "message":
    return _message(demonstration, action, config, setting)
  if action.type == "message":
    return types.Verdict(0.0, "no_expected_tool_call")
  wanted, made = demonstration.calls, action.calls
  table = [[compare(e, g, config, setting) for g in made] for e in wanted]
  if len(wanted) == len(made) == 1:
    reason = table[0][0]
    return types.Verdict(float(reason is None), reason or "expected_tool_call")
  if any(_unreadable(e, g, setting) for e in wanted for g in made):
    return types.Verdict(0.0, "arguments_decode_error")
  alone = demonstration.type == "function_call"
  return _several(table, len(made), alone, config, setting)


def compare(
  want: types.ToolCall,
  got: types.ToolCall,
  config: Mapping[str, Any],
  setting: str,
) -> str | None:
  """Why a call is not the expected one; None where it is."""
  if want.name != got.name:
    return "unexpected_tool"
  read = _reader(setting)
  expected, made = read(want.arguments), read(got.arguments)
  if arguments.UNREADABLE in (expected, made):
    return "arguments_decode_error"
  return arguments.mismatch(
    expected,
    made,
    tolerance=config["floating_point_comparison_threshold"],
    words=config["word_count_similarity_threshold"],
    setting=setting,
  )


def _reader(setting):
  """What decodes arguments; in the original no text is no object."""
  return arguments.of_call if setting == "default" else arguments.decode


def _unreadable(want, got, setting):
  """Whether comparing two calls of several ends all: a broken label does."""
  return want.name == got.name and (
    arguments.too_large(got.arguments)
    or _reader(setting)(want.arguments) is arguments.UNREADABLE
  )


def _message(demonstration, action, config, setting):
  if action.type != "message":
    return types.Verdict(0.0, "no_expected_chat_message")
  if setting == "default" and not action.content.strip():
    return types.Verdict(0.0, "empty_message")
  threshold = config["message_similarity_threshold"]
  if threshold and not arguments.same_message(
    demonstration.content, action.content, threshold
  ):
    return types.Verdict(0.0, "chat_message_different")
  return types.Verdict(1.0, "expected_chat_message_found")


def _several(table, count, alone, config, setting):
  """Rewards a maximum matching between expected and made calls."""
  expected = len(table)
  rewarding = config["parallel_tool_call_rewarding"]
  if rewarding and (
    (count < expected and not config["allow_subset"])
    or (count > expected and not config["allow_superset"])
  ):
    return types.Verdict(0.0, "function_call_batch_length_different")
  fits = np.array([[reason is None for reason in row] for row in table], int)
  partner = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
  matched = int((partner >= 0).sum())
  reward = _reward(matched, expected, count, config)
  if setting == "default" and alone and not rewarding and count > 1:
    reward = 0.0  # Upstream lets surplus calls go free: spraying would pay.
  details = {"matched": matched, "expected": expected, "made": count}
  if reward == 1.0:
    tail = "" if expected == 1 else "_batch"
    return types.Verdict(1.0, f"expected_tool_call{tail}", details)
  if matched == expected or matched == count:
    reason = "function_call_batch_length_different"
  else:
    row = table[int(np.flatnonzero(partner < 0)[0])]
    late = [r for r in row if r not in (None, "unexpected_tool")]
    reason = late[0] if late else "unexpected_tool"
  return types.Verdict(reward, reason, details)


def _reward(matched, expected, count, config):
  if not config["parallel_tool_call_rewarding"]:
    return float(matched == expected)
  mode = config["parallel_tool_call_reward_mode"]
  if mode == "f1":
    return 2.0 * matched / (expected + count)
  required = min(expected, count) if config["allow_subset"] else expected
  if mode == "fractional":
    return matched / required
  return float(matched == required)
