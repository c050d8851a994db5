"""What the originals do with arguments that are no object, by their rules."""

import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.verifiers import cases
from pivotrl_jax.verifiers import verify

BASH = '{"command": "ls a/b"}'
EDIT = '{"command": "create", "path": "a/b", "file_text": "x"}'
OFF = {"enable_target_match": False, "enable_argument_similarity": False}
SIZED = {**OFF, "reward_mode": "continuous"}


def call(name, arguments):
  return types.Action("function_call", calls=(types.ToolCall(name, arguments),))


@pytest.mark.parametrize(
  ("name", "want", "got", "config", "reward"),
  [
    # What no level looks into passes, whatever it is.
    ("finish", '{"message": "done"}', "null", {}, 1.0),
    ("finish", "3", '{"message": "done"}', {}, 1.0),
    ("think", '{"thought": "x"}', "[1]", {}, 1.0),
    ("task_tracker", "{}", '"text"', {}, 1.0),
    ("my_tool", '{"a": 1}', "true", {}, 1.0),
    # A shell command is looked up: not in numbers, true or null ...
    ("execute_bash", BASH, "null", {}, 0.0),
    ("execute_bash", BASH, "3", {}, 0.0),
    ("execute_bash", "true", BASH, {}, 0.0),
    # ... and in lists and texts only where it seems to be there.
    ("execute_bash", BASH, '["x"]', {}, 1.0),
    ("execute_bash", BASH, '["cmd"]', {}, 0.0),
    ("execute_bash", BASH, '"rm -rf /"', {}, 1.0),
    ("execute_bash", BASH, '"a command"', {}, 0.0),
    ("execute_bash", '["x"]', BASH, {}, 1.0),
    ("execute_bash", BASH, "{bad", {}, 1.0),
    ("execute_bash", BASH, "null", OFF, 1.0),
    ("execute_bash", BASH, "null", {"enable_target_match": False}, 0.0),
    # Searches and reads: a path, at level 1 alone.
    ("grep", '{"path": "a"}', "null", {}, 0.0),
    ("grep", '{"path": "a"}', '"x"', {}, 1.0),
    ("grep", '{"path": "a"}', '"my file"', {}, 0.0),
    ("grep", '{"path": "a"}', "null", {"enable_target_match": False}, 1.0),
    ("view_file", '{"path": "a"}', '["path"]', {}, 0.0),
    # An edit's arguments must be an object, unless nothing looks.
    ("str_replace_editor", EDIT, "[]", {}, 0.0),
    ("str_replace_editor", EDIT, '""', {"enable_target_match": False}, 0.0),
    ("str_replace_editor", EDIT, "null", OFF, 1.0),
    # Its size is looked up in the model's alone.
    ("str_replace_editor", EDIT, "[]", SIZED, 1.0),
    ("str_replace_editor", EDIT, '["patch"]', SIZED, 0.0),
    ("str_replace_editor", EDIT, "3", SIZED, 0.0),
    ("str_replace_editor", "3", EDIT, SIZED, 1 - 0.1 * 1 / 500),
    # Integers beyond what Python reads end in an error.
    ("execute_bash", BASH, "9" * 5000, {}, 0.0),
  ],
)
def test_swe_pivot(name, want, got, config, reward):
  verdict = verify.verify(
    "swe_pivot", call(name, want), call(name, got), config=config,
    setting="compat",
  )  # fmt: skip
  assert verdict.reward == pytest.approx(reward)


@pytest.mark.parametrize("given", [None, [1], 3, True])
def test_a_label_with_arguments_of_another_type_has_none(given):
  label = {"type": "function_call", "name": "bash", "arguments": given}
  said = {"type": "function_call", "name": "bash", "arguments": BASH}
  case = {
    "verifier": "swe_pivot", "setting": "compat", "expected_action": label,
    "model_action": said,
  }  # fmt: skip
  assert cases.read(case).score().reward == 1.0


@pytest.mark.parametrize(
  ("span", "want"),
  [
    ("[1, 50]", 1.0),
    ("[1, 2]", 0.0),
    ('"[1, 50]"', 1.0),
    # No list of two lines is no range: the whole file.
    ('{"1": 0, "2": 0}', 1.0),
    ("[1]", 1.0),
    # Infinity is no line: an error.
    ("[1, 1e400]", 0.0),
  ],
)
def test_views_in_compat(span, want):
  label = '{"command": "view", "path": "a", "view_range": [1, 50]}'
  said = f'{{"command": "view", "path": "a", "view_range": {span}}}'
  verdict = verify.verify(
    "swe_pivot", call("str_replace_editor", label),
    call("str_replace_editor", said), setting="compat",
  )  # fmt: skip
  assert verdict.reward == want


def batch(*calls):
  return types.Action(
    "function_call_batch", calls=tuple(types.ToolCall(*c) for c in calls)
  )


@pytest.mark.parametrize(
  ("wanted", "made", "config", "reward"),
  [
    # The original compares all with all: a broken label of a name that was
    # called ends everything, also where another call would have earned.
    ([("f", "{}"), ("g", "{bad")], [("f", "{}"), ("g", "{}")], "f1", 0.0),
    ([("f", "{}"), ("g", "")], [("f", "{}"), ("g", "{}")], "f1", 0.0),
    # Of a name that was not called it is never read.
    ([("f", "{}"), ("g", "{bad")], [("f", "{}"), ("h", "{}")], "f1", 0.5),
    # Too many or too few calls are refused before.
    ([("f", "{}"), ("g", "{bad")], [("g", "{}")], None, 0.0),
    # A broken call of the model's is just no match.
    ([("f", "{}"), ("g", "{}")], [("f", "{}"), ("g", "{bad")], "f1", 0.5),
    # One that Python cannot read ends everything, if its name is expected.
    ([("f", "{}"), ("g", "{}")], [("f", "{}"), ("g", "9" * 5000)], "f1", 0.0),
    ([("f", "{}"), ("g", "{}")], [("f", "{}"), ("h", "9" * 5000)], "f1", 0.5),
  ],
)
def test_single_step_batches(wanted, made, config, reward):
  options = {}
  if config:
    options = {
      "parallel_tool_call_rewarding": True,
      "parallel_tool_call_reward_mode": config,
    }
  verdict = verify.verify(
    "single_step", batch(*wanted), batch(*made), config=options,
    setting="compat",
  )  # fmt: skip
  assert verdict.reward == reward


NOTHING = ("", " \n", "null", "{}", " {} ")


@pytest.mark.parametrize(
  "verifier", ["single_step", "strict", "swe_pivot", "terminal_multi_harness"]
)
def test_no_arguments_are_none_however_they_are_written(verifier):
  tools = [{"type": "function", "name": "ls", "parameters": {"type": "object"}}]
  for want in NOTHING:
    for got in NOTHING:
      verdict = verify.verify(
        verifier, call("ls", want), call("ls", got), tools=tools
      )
      assert verdict.reward == 1.0, (want, got)
    some = verify.verify(
      verifier, call("ls", '{"path": "a"}'), call("ls", want), tools=tools,
      row={"harness": "codex"},
    )  # fmt: skip
    if verifier in ("single_step", "strict"):
      assert some.reward == 0.0


def test_arguments_of_the_peers(testdata):
  path = testdata / "wild" / "peers" / "row24_score.jsonl"
  scored = [
    cases.read(json.loads(line)).score().reward
    for line in path.read_text().splitlines()
  ]
  assert scored == [1.0] * 8
