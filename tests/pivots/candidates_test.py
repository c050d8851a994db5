"""Candidates: which turns, and what the policy sees before them."""

import logging

import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy
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
  config = swe.get_config("tiny")
  config.data.update(data)
  return config


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


def _written(tmp_path, config, *messages):
  """Ids of the candidates, and rows left out, of one trajectory."""
  trajectory = types.Trajectory(
    "t", "swe", "test", "task", None, True, (), messages
  )
  row = records.trajectory_to_json(trajectory)
  records.write_jsonl(tmp_path / "trajectories.jsonl", [row])
  candidates.run(config, tmp_path)
  kept = records.read_candidates(tmp_path / "candidates.jsonl")
  left = records.read_jsonl(tmp_path / "skipped.jsonl")
  return [c.id for c in kept], [row for _, row in left]


def _template(tmp_path, before, after):
  own = (policy.MINI / "chat_template.jinja").read_text()
  assert before in own
  path = tmp_path / "t.jinja"
  path.write_text(own.replace(before, after))
  config = _config()
  config.model.chat_template = str(path)
  return config


_USER = types.Message("user", "q")
_ANSWER = types.Message("assistant", "a", reasoning="r")


def test_turns_that_the_template_refuses_are_named(tmp_path):
  config = _template(
    tmp_path,
    "{%- for message in messages %}",
    "{%- for message in messages %}{%- if message.content == 'b' %}"
    "{{ raise_exception('b is refused') }}{%- endif %}",
  )
  kept, left = _written(
    tmp_path, config, _USER, _ANSWER, types.Message("user", "b"), _ANSWER
  )
  assert kept == ["t/0"]
  assert [(row["id"], row["reason"]) for row in left] == [
    ("t/1", "chat template: b is refused")
  ]


def test_when_the_template_refuses_all_the_first_reason_is_said(tmp_path):
  config = _template(
    tmp_path, "{%- if tools %}", "{{ raise_exception('No') }}{%- if tools %}"
  )
  with pytest.raises(errors.InputError, match="the first: chat template: No"):
    _written(tmp_path, config, _USER, _ANSWER)


_THOUGHT = "{%- if message.reasoning_content %}"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (_THOUGHT, "{%- if true %}",
         "1 of 2 demonstrations hold an empty block of thinking"),
        (_THOUGHT, "{%- if false %}", "1 of 2 demonstrations have reasoning"),
        ("{{- message.content }}", "{{- message.content | upper }}",
         "2 of 2 demonstrations are not read back"),
        ("Tools:", "Tools:", None),
    ],
)  # fmt: skip
def test_what_demonstrations_teach_is_said_once(
  tmp_path, caplog, before, after, said
):
  plain = types.Message("assistant", "a")
  # An empty block needs a reasoning that is a text.
  config = _template(tmp_path, before, after)
  text = (tmp_path / "t.jinja").read_text()
  (tmp_path / "t.jinja").write_text(
    text.replace(
      "+ message.reasoning_content +", "+ (message.reasoning_content or '') +"
    )
  )
  with caplog.at_level(logging.WARNING):
    kept, _ = _written(tmp_path, config, _USER, plain, _USER, _ANSWER)
  assert kept == ["t/0", "t/1"]
  lines = [r.getMessage() for r in caplog.records if r.levelno > logging.INFO]
  assert len(lines) == (said is not None)
  assert said is None or said in lines[0]


def test_nothing_left_is_an_input_error(tmp_path):
  row = records.trajectory_to_json(_trajectory("b", False))
  records.write_jsonl(tmp_path / "trajectories.jsonl", [row])
  with pytest.raises(errors.InputError, match="no candidate"):
    candidates.run(_config(), tmp_path)
