"""Pivot rows: there and back without loss, and what Gym would refuse."""

import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.data import importers
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import nemo_gym
from pivotrl_jax.data.importers import openai
from pivotrl_jax.pivots import candidates


def _same(one, other):
  """As JSON: 1 is neither 1.0 nor true."""
  return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _pivot_files(testdata):
  yield from sorted((testdata / "data/nemo_gym/pivot_rows").iterdir())
  yield from sorted(
    (testdata / "conformance/nemo_gym_examples").rglob("*.jsonl")
  )


def test_imported_rows_come_back_as_they_were(testdata):
  checked = 0
  for path in _pivot_files(testdata):
    if importers.detect(path) != "nemo_gym_pivots":
      continue
    rows = [row for _, row in records.read_jsonl(path)]
    found = list(importers.import_path(path))
    assert len(found) == len(rows)
    for row, trajectory in zip(rows, found, strict=True):
      line = records.encode(records.trajectory_to_json(trajectory))
      trajectory = records.trajectory_from_json(json.loads(line))
      (candidate,) = candidates.candidates(trajectory)
      assert candidate.num_turns == 1
      assert _same(nemo_gym.pivot_row(trajectory, candidate), row)
      checked += 1
  assert checked >= 29  # The rows of data/nemo_gym/pivot_rows alone.


def test_label_is_the_demonstration_and_history_is_context(testdata):
  path = (
    testdata / "data/nemo_gym/pivot_rows/single_step_tool_use.example.jsonl.gz"
  )
  for (_, row), trajectory in zip(
    records.read_jsonl(path), importers.import_path(path), strict=True
  ):
    (candidate,) = candidates.candidates(trajectory)
    label = types.action_to_json(candidate.demonstration)
    assert _same(label, row["expected_action"])
    prefix = candidates.prefix_messages(trajectory, candidate)
    assert all(m.context for m in prefix if m.role == "assistant")
    assert len(prefix) == len(trajectory.messages) - 1


def test_terminus_answer_is_a_message(testdata):
  path = testdata / "data/nemo_gym/pivot_rows/terminus_judge.example.jsonl"
  trajectory = next(importers.import_path(path))
  answer = trajectory.extra["expected_answer"]
  assert trajectory.messages[-1] == types.Message("assistant", answer)
  assert trajectory.extra["metadata"]["harness"] == "terminus_2"


def test_own_turns_export_as_valid_rows(testdata):
  path = testdata / "data/tau2_bench/results/claude-sonnet-4.5_airline.json.gz"
  exported = 0
  for trajectory in list(importers.import_path(path))[:5]:
    for candidate in candidates.candidates(trajectory):
      row = nemo_gym.pivot_row(trajectory, candidate)
      assert nemo_gym.validate_row(row) is None
      assert _same(
        row["expected_action"], types.action_to_json(candidate.demonstration)
      )
      exported += 1
      # And in again: the same prefix, the same label.
      file = files.File("rows.jsonl", lambda: iter([(1, row)]))  # noqa: B023
      (again,) = nemo_gym.read_pivots(file)
      (second,) = candidates.candidates(again)
      label = types.action_to_json(second.demonstration)
      assert _same(label, row["expected_action"])
      assert _same(nemo_gym.pivot_row(again, second), row)
  assert exported > 20


def test_validator_answers_as_the_original(testdata):
  """But for batches, which the newer server takes."""
  differing = []
  path = testdata / "conformance/pivot_row_validation.jsonl"
  for _, case in records.read_jsonl(path):
    options = case["options"]
    if "row" not in case or options["require_field"]:
      continue
    if options["require_any_field"]:  # Which further keys to ask for.
      continue
    reason = nemo_gym.validate_row(
      case["row"],
      agent=options["agent_ref"],
      server_models=options["with_server_models"],
    )
    if (reason is None) != case["valid"]:
      differing.append(case["tags"])
  assert differing == [["ea_batch"], ["ea_batch_one"]]


@pytest.mark.parametrize(
  ("calls", "wanted"),
  [
    ([], "expected_action.calls: expected at least one call"),
    (
      [{"type": "function_call", "name": "g", "arguments": "{}"}],
      "expected_action.name 'g': expected a tool",
    ),
    (
      [
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call", "name": "f", "arguments": "{"},
      ],
      "expected_action.arguments: not JSON",
    ),
  ],
)
def test_every_call_of_a_batch_is_checked(calls, wanted):
  row = {
    "responses_create_params": {
      "input": [{"role": "user", "content": "q"}],
      "tools": [{"type": "function", "name": "f", "parameters": {}}],
    },
    "expected_action": {"type": "function_call_batch", "calls": calls},
    "agent_ref": {"type": "responses_api_agents", "name": "a"},
  }
  assert nemo_gym.validate_row(row).startswith(wanted)


def _plain(items):
  """Items without generated ids and without the spelling of text parts."""
  kept = []
  for item in items:
    item = {k: v for k, v in item.items() if k not in ("id", "status")}
    if item.get("type") == "message":
      del item["type"]
    if isinstance(item.get("content"), list):
      item["content"] = "\n".join(part["text"] for part in item["content"])
    kept.append(item)
  return kept


def test_rows_are_those_of_the_originals_converters(testdata):
  """Prefix and label of each row that the chat converters make."""
  differing = []
  path = testdata / "conformance/pivot_extraction.jsonl"
  for _, case in records.read_jsonl(path):
    if case["converter"] not in ("chat_messages", "tool_messages"):
      continue
    if not case.get("rows"):
      continue
    file = files.File("case.json", lambda: iter(()))
    trajectory = openai.trajectory(file, None, case["trajectory"])
    ours = {c.prefix: c for c in candidates.candidates(trajectory)}
    for row in case["rows"]:
      made = nemo_gym.pivot_row(trajectory, ours[row["message_index"]])
      request = "responses_create_params"
      same_label = _same(made["expected_action"], row["expected_action"])
      one, other = (_plain(r[request]["input"]) for r in (made, row))
      if not (same_label and one == other):
        differing.append(case["tags"])
  # One converter reads thinking under one key only, and one labels a turn
  # without content null, which no server takes.
  assert len(differing) == 2
