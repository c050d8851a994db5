"""Laws of all worlds, and agents that try anything."""

import dataclasses
import json
import os
import random

import pytest

from pivotrl_jax import types
from pivotrl_jax.envs import __main__ as report
from pivotrl_jax.envs import base
from pivotrl_jax.envs import worlds

NAMES = tuple(worlds.WORLDS)
# Actions that a world gets from an agent that tries anything; swe runs code.
HOSTILE = int(os.environ.get("PIVOTRL_HOSTILE", "10000"))
HOSTILE_SWE = int(os.environ.get("PIVOTRL_HOSTILE", "2000"))


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_a_function_of_split_and_index(name):
  env = worlds.WORLDS[name]
  for split in base.SPLITS:
    assert env.make_task(7, split) == env.make_task(7, split)
    assert env.make_task(7, split) != env.make_task(8, split)
  with pytest.raises(ValueError, match="split 'best'; expected train"):
    env.make_task(0, "best")


@pytest.mark.parametrize("name", NAMES)
def test_there_are_100_000_tasks_and_the_splits_share_none(name):
  env = worlds.WORLDS[name]
  # 800 different ones: 800^2 / 6 = 106,666 at 95 %.
  assert report.distinct(name, "train", 800)[1] > 100_000
  seen = [
    {
      repr(dataclasses.replace(env.make_task(i, s), id="", **_without(name)))
      for i in range(150)
    }
    for s in base.SPLITS
  ]
  assert [len(tasks) for tasks in seen] == [150, 150, 150]
  assert not (seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2])


def _without(name):
  """What two tasks may differ in and be the same."""
  return {"split": "", "number": 0} if name == "search" else {}


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_succeeds_and_a_poor_agent_fails_more(name):
  count = 25
  for split in base.SPLITS:
    played = [worlds.demonstrate(name, i, split, 0) for i in range(count)]
    assert all(t.success and t.reward == 1.0 for t in played)
    assert {t.domain for t in played} == {worlds.WORLDS[name].DOMAIN}
  again = worlds.demonstrate(name, 3, "eval", 0)
  assert again == played[3]
  rates = [
    sum(
      worlds.demonstrate(name, i, "eval", 0, poor=p).success
      for i in range(count)
    )
    for p in (0.3, 0.9)
  ]
  assert count > rates[0] > rates[1]


@pytest.mark.parametrize("name", NAMES)
def test_most_turns_have_several_right_ways_that_the_verifier_takes(name):
  found = report.measure(name, report.config_of(name), 20)
  assert found["success"] == 1.0
  assert found["several"] > 0.5
  assert found["missed"] > 0.25
  assert found["taken"] > 0.8
  assert found["taken_poor"] < 0.35


@pytest.mark.parametrize("name", NAMES)
def test_doing_nothing_is_no_success(name):
  env = worlds.WORLDS[name]
  for i in range(20):
    task = env.make_task(i, "train")
    state, _ = env.reset(task)
    assert not env.success(task, state)
    for text in ("Done.", '{"analysis": "", "plan": "", "commands": [],'
                 ' "task_complete": true}'):  # fmt: skip
      after, _ = env.step(task, state, types.Action("message", content=text))
      assert not env.success(task, after)


VALUES = (
    "", " ", "../../etc/passwd", "/", "rm -rf /", "\x00", "\ud800", "é" * 40,
    "a" * 3000, "__import__('os').system('touch /tmp/x')", "{x}", "%s%n", "*",
    "(a+)+$", "[", "\\", "-1", 0, -1, 10**30, 1.5, True, None, [], {},
    [[[["x"]]]], {"a": {"b": 1}},
)  # fmt: skip
LINES = (
    "rm -rf /", "rm -rf *", "cat /etc/passwd", "cd /; ls", ":(){ :|:& };:",
    "$(reboot)", "`id`", "find / -delete", "mv /app /gone", "echo x > /app",
    "cp -r /app /app/app", "cat * > all; cat all all > b", "grep -E 'a*a*a*b' *",
    "yes | head", "sed -i 's/.*/&&&&&&&&/' *", "printf '%s' *", "ls -R / | sort",
    "cd .. && rm -r app", "echo 'unclosed", "a && && b", "| cat", "> x", "<",
    "tr a-\uffff b < x", "cut -f 99999999999 x", "head -n -5 x", "xargs xargs",
    "find . -name '[' -name '*'", "sed -n '$p;$d' x", "awk '{print $NF}' *",
    "mkdir -p " + "a/" * 90, "touch " + " ".join(map(str, range(300))),
    "uniq -c -d -u /dev/null", "echo x >> /dev/null; cat /dev/null",
)  # fmt: skip


def _hostile(rng, env, heard):
  """An action of an agent that tries anything."""
  kind = rng.randrange(10)
  if kind == 0:
    return types.ParseFailure("tool_call_not_json", rng.choice(LINES))
  if kind < 3:
    texts = ("", "yes?", "I cannot do it.", "{", "[]", "null", "[" * 9000)
    return types.Action(
      "message", content=rng.choice((*texts, rng.choice(heard), _reply(rng)))
    )
  calls = tuple(
    _call(rng, env, heard) for _ in range(1 if kind < 8 else rng.randrange(5))
  )
  if not calls:
    return types.Action("message", content=rng.choice(heard))
  many = "function_call" if len(calls) == 1 else "function_call_batch"
  return types.Action(many, calls=calls)


def _reply(rng):
  """Something like a Terminus reply."""
  reply = {
    "analysis": "", "plan": rng.choice(("", 3)),
    "commands": [
      {"keystrokes": rng.choice(LINES) + rng.choice(("", "\n"))}
      for _ in range(rng.randrange(4))
    ],
    "task_complete": rng.choice((True, False, False, "yes")),
  }  # fmt: skip
  reply["plan"] = rng.choice(("", "", "", 3))
  return json.dumps(reply)


def _call(rng, env, heard):
  """A call with arguments that fit, or not at all."""
  text = rng.choice(("{", "[]", "null", '{"a": ' * 4000, "9" * 5000))
  if not env.TOOLS or rng.random() < 0.1:
    return types.ToolCall(rng.choice(("rm", "", "submit ", "é")), text, "c")
  function = rng.choice(env.TOOLS)["function"]
  if rng.random() < 0.1:
    return types.ToolCall(function["name"], text, "c")
  arguments = {}
  for key, kind in function["parameters"]["properties"].items():
    value = rng.choice(VALUES)
    if kind["type"] == "string" and rng.random() < 0.8:
      value = rng.choice((rng.choice(LINES), rng.choice(heard)))
    elif kind["type"] == "integer" and rng.random() < 0.8:
      value = rng.randrange(-3, 5000)
    if rng.random() < 0.95:
      arguments[key] = value
  if rng.random() < 0.05:
    arguments[rng.choice(("x", "__class__", "self"))] = 1
  return types.ToolCall(function["name"], json.dumps(arguments), "c")


@pytest.mark.parametrize("name", NAMES)
def test_whatever_an_agent_does_the_world_answers_and_gives_nothing(name):
  env = worlds.WORLDS[name]
  rng = random.Random(name)
  done = 0
  while done < (HOSTILE_SWE if name == "swe" else HOSTILE):
    task = env.make_task(done, "train")
    state, messages = env.reset(task)
    heard = [word for m in messages for word in (m.content, *m.content.split())]
    for _ in range(25):
      state, answers = env.step(task, state, _hostile(rng, env, heard))
      done += 1
      for message in answers:
        assert message.role in ("user", "tool")
        assert len(message.content) < 5000
        heard += message.content.split()[:20]
      if state.done:
        break
    # What it heard may hold the answer of a search, which then counts.
    if env.success(task, state):
      assert name == "search" and state.answer in heard


def test_the_report_is_a_row_a_world(capsys):
  assert report.main(["tau", "search", "--episodes=2", "--tasks=9"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("| world | tasks, at least | expert's success |")
  # 9 tasks, all different: 9^2 / 6.
  assert lines[2].startswith("| tau | 13 | 100.0 % |")
  assert lines[3].startswith("| search | 13 | 100.0 % |")
  assert report.main(["moon"]) == 2
  assert "world 'moon'; expected some of swe, tau" in capsys.readouterr().err
