"""The production verifiers' own answers, on the shared cases."""

import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.verifiers import verify


def _action(said):
  """Responses output items, or one assistant message, as an action."""
  if isinstance(said, str):
    return types.Action("message", content=said)
  calls = tuple(
    types.ToolCall(i["name"], i["arguments"])
    for i in said
    if i["type"] == "function_call"
  )
  if calls:
    kind = "function_call" if len(calls) == 1 else "function_call_batch"
    return types.Action(kind, calls=calls)
  for item in said:
    if item["type"] == "message" and item["role"] == "assistant":
      for part in item["content"]:
        if part["type"] == "output_text":
          return types.Action("message", content=part["text"])
  return types.ParseFailure("no_action_found", "")


def _cases(testdata, name):
  with open(testdata / "conformance" / f"{name}.jsonl") as lines:
    for line in lines:
      case = json.loads(line)
      label = case["expected_action"]
      if isinstance(label, dict) and isinstance(label.get("type"), str):
        try:
          demonstration = types.action_from_json(label)
        except ValueError:
          continue
        yield case, demonstration, _action(case["model_action"])


@pytest.mark.parametrize(
  ("name", "least"), [("single_step", 500), ("swe_pivot", 340)]
)
def test_compat_gives_the_original_rewards(testdata, name, least):
  """Where the original raised or refused the label, no reward is compared."""
  wrong = []
  total = 0
  for case, demonstration, action in _cases(testdata, name):
    if case["reward"] is None:
      continue
    got = verify.verify(
      name, demonstration, action, config=case["config"], setting="compat"
    )
    total += 1
    if abs(got.reward - case["reward"]) > 1e-9:
      wrong.append((case["id"], got.reward, case["reward"]))
  assert total > least
  assert not wrong
