"""The mini SWE world, its expert and its sandbox."""

import pytest

from pivotrl_jax import types
from pivotrl_jax.envs import sandbox
from pivotrl_jax.envs import swe
from pivotrl_jax.envs import worlds


def test_tasks_are_a_function_of_their_index():
  assert swe.make_task(7, "train") == swe.make_task(7, "train")
  with pytest.raises(ValueError, match="'test'; expected train or eval"):
    swe.make_task(0, "test")


def test_splits_share_no_function_and_tasks_repeat_rarely():
  train = [swe.make_task(i, "train") for i in range(2000)]
  evals = [swe.make_task(i, "eval") for i in range(2000)]
  names = [{t.function for t in tasks} for tasks in (train, evals)]
  assert not names[0] & names[1]
  for tasks in (train, evals):
    assert len({(t.files, t.issue) for t in tasks}) == 2000


def test_the_bug_fails_and_the_mend_passes():
  for i in range(200):
    task = swe.make_task(i, "eval")
    broken = sandbox.run_checks(dict(task.files), task.checks)
    fixed = sandbox.run_checks(dict(task.fixed), task.checks)
    assert not broken[0].passed, task
    assert all(r.passed for r in fixed), task


def test_the_expert_solves_every_task_in_several_ways():
  first = [worlds.demonstrate("swe", i, "train", 0) for i in range(60)]
  again = [worlds.demonstrate("swe", i, "train", 1) for i in range(60)]
  assert all(t.success for t in first + again)
  assert worlds.demonstrate("swe", 3, "train", 0) == first[3]
  turns = [
    (types.action_of(a), types.action_of(b))
    for x, y in zip(first, again, strict=True)
    for a, b in zip(x.messages, y.messages, strict=True)
    if a.role == "assistant"
  ]
  # Only run_tests and submit, two turns of five, have one way.
  same = sum(a.calls[0].arguments == b.calls[0].arguments for a, b in turns)
  assert same / len(turns) < 0.75


def test_a_poor_agent_fails_more():
  rates = [
    sum(
      worlds.demonstrate("swe", i, "train", 0, poor=p).success
      for i in range(60)
    )
    for p in (0.0, 0.3, 0.8)
  ]
  assert rates[0] == 60 > rates[1] > rates[2]


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("grep", '{"pattern": 3}', "Bad arguments."),
        ("grep", "{", "Arguments are not JSON."),
        ("grep", "[]", "Bad arguments."),
        ("grep", "{}", "Missing pattern."),
        ("rm", "{}", "No such tool."),
        ("view_file", '{"path": "../etc/passwd"}', "No such file."),
        ("view_file", '{"path": "x.py", "lines": 1}', "Bad arguments."),
        ("edit_file", '{"path": "no.py", "old_str": "a", "new_str": "b"}',
         "No such file."),
    ],
)  # fmt: skip
def test_bad_calls_are_answered(name, arguments, answer):
  task = swe.make_task(0, "eval")
  state, _ = swe.reset(task)
  call = types.ToolCall(name, arguments, "c1")
  after, messages = swe.step(
    task, state, types.Action("function_call", calls=(call,))
  )
  assert messages == (types.Message("tool", answer, tool_call_id="c1"),)
  assert after.files == state.files and not after.done


def test_what_is_no_action_is_answered():
  task = swe.make_task(0, "eval")
  state, _ = swe.reset(task)
  _, messages = swe.step(task, state, types.ParseFailure("cut_off", "x"))
  assert messages[0].content == "Bad tool call: cut_off."
  _, messages = swe.step(task, state, types.Action("message", content="hi"))
  assert messages[0].content == "Use a tool."


def test_unsubmitted_work_is_no_success():
  task = swe.make_task(0, "eval")
  assert not swe.success(task, swe.State(task.fixed))
  assert swe.success(task, swe.State(task.fixed, done=True))


CHECK = (sandbox.Check("a.py", "f(2)", "3"),)


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ("import os\ndef f(x):\n  return 3\n", "Import is not allowed"),
        ("def f(x):\n  return ().__class__\n",
         "attribute __class__ is not allowed"),
        ("def f(x):\n  return __import__('os')\n",
         "name __import__ is not allowed"),
        ("def f(x):\n  return open('/etc/passwd')\n", "NameError"),
        ("def f(x):\n  return eval('3')\n", "NameError"),
        ("def f(x):\n  return f(x)\n", "RecursionError"),
        ("def f(x):\n  return len([0] * 999999999)\n", "MemoryError"),
        ("def f(x):\n  while True:\n    x = 1\n", "killed"),
        ("def f(x:\n", "SyntaxError"),
        ("def f(x):\n  return 3.0\n", "3.0"),
        ("x = 1\n" * 900, "longer than 4000 characters"),
    ],
)  # fmt: skip
def test_sandbox_refuses(source, got):
  assert sandbox.run_checks({"a.py": source}, CHECK) == (
    sandbox.Result(False, got),
  )


def test_sandbox_goes_on_after_a_kill():
  sandbox.run_checks({"a.py": "def f(x):\n  while x:\n    x = 2\n"}, CHECK)
  good = sandbox.run_checks({"a.py": "def f(x):\n  return x + 1\n"}, CHECK)
  assert good == (sandbox.Result(True, "3"),)
