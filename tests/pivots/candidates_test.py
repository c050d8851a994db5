"""Candidates: which turns, and what the policy sees before them."""

import ml_collections
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.pivots import candidates

_CALL = types.ToolCall("grep", '{"pattern": "x"}', "c1")
_MESSAGES = (
  types.Message("system", "s"),
  types.Message("assistant", "Hi!", context=True),
  types.Message("user", "mend it"),
  types.Message("assistant", "", reasoning="secret", tool_calls=(_CALL,)),
  types.Message("tool", "none", tool_call_id="c1"),
  types.Message(
    "assistant", "done", prompt=(types.Message("user", "summary"),)
  ),
)


def _trajectory(name, success):
  return types.Trajectory(
    name, "swe", "test", "task", None, success, (), _MESSAGES
  )


def test_every_turn_but_context_is_a_candidate():
  found = candidates.candidates(_trajectory("t", True))
  assert [(c.id, c.turn, c.num_turns, c.prefix) for c in found] == [
    ("t/0", 0, 2, 3),
    ("t/1", 1, 2, 5),
  ]
  assert found[0].demonstration == types.Action("function_call", calls=(_CALL,))
  assert found[1].demonstration == types.Action("message", content="done")


def test_prefix_is_the_history_or_the_turns_own_prompt():
  trajectory = _trajectory("t", True)
  first, second = candidates.candidates(trajectory)
  assert candidates.prefix_messages(trajectory, first) == _MESSAGES[:3]
  assert candidates.prefix_messages(trajectory, second) == (
    types.Message("user", "summary"),
  )


def _config(**data):
  return ml_collections.ConfigDict({"data": data})


def test_failed_trajectories_are_named_in_skipped(tmp_path):
  records.write_jsonl(
    tmp_path / "trajectories.jsonl",
    [
      records.trajectory_to_json(_trajectory(name, success))
      for name, success in (("a", True), ("b", False), ("c", None))
    ],
  )
  candidates.run(_config(), tmp_path)
  found = records.read_candidates(tmp_path / "candidates.jsonl")
  assert [c.id for c in found] == ["a/0", "a/1", "c/0", "c/1"]
  ((_, skipped),) = records.read_jsonl(tmp_path / "skipped.jsonl")
  assert (skipped["id"], skipped["stage"]) == ("b", "candidates")
  candidates.run(_config(successful_only=False), tmp_path)
  found = records.read_candidates(tmp_path / "candidates.jsonl")
  assert len(list(found)) == 6
  assert (tmp_path / "skipped.jsonl").read_text() == ""


def test_nothing_left_is_an_input_error(tmp_path):
  row = records.trajectory_to_json(_trajectory("b", False))
  records.write_jsonl(tmp_path / "trajectories.jsonl", [row])
  with pytest.raises(errors.InputError, match="no candidate"):
    candidates.run(_config(), tmp_path)
