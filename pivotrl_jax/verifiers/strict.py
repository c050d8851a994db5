"""Exact match with the demonstration: the paper's ablation (eq. 2)."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.verifiers import arguments


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
  """1 where the two say the same; JSON white space and key order aside."""
  del tools, config, setting, row, judge
  if _canonical(demonstration) == _canonical(action):
    return types.Verdict(1.0, "exact_match")
  return types.Verdict(0.0, "not_exact_match")


def _canonical(action):
  calls = tuple((call.name, _value(call.arguments)) for call in action.calls)
  return action.content.strip() if not calls else "", calls


def _value(text):
  value = arguments.of_call(text)
  if value is arguments.UNREADABLE:
    return text
  return json.dumps(value, sort_keys=True)
