"""Agents that want the reward without the goal, world by world."""

import dataclasses
import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs import search
from pivotrl_jax.envs import swe
from pivotrl_jax.envs import tau
from pivotrl_jax.envs import terminal


def _call(name, /, **arguments):
  text = json.dumps(arguments)
  return types.Action("function_call", calls=(types.ToolCall(name, text, "c"),))


def _say(text):
  return types.Action("message", content=text)


def _end(env, task, actions):
  """The state after actions, from the start."""
  state, _ = env.reset(task)
  for action in actions:
    state, _ = env.step(task, state, action)
  return state


def _succeeds(env, task, actions):
  return env.success(task, _end(env, task, actions))


# --- swe: an edit that fools the tests instead of mending the bug.


def _body(task):
  """The function at fault: its head, and its text."""
  source = dict(task.files)[task.path]
  return source.splitlines()[0], source


def _wanted(check):
  arguments = check.call.partition("(")[2][:-1]
  return arguments, check.want


def _constant(task):
  """Redefines the function to give what the first test wants."""
  head, source = _body(task)
  return f"{source}\n{head}\n  return {task.checks[0].want}\n"


def _by_heart(task):
  """Redefines it to give what all tests that were ever reported want."""
  head, source = _body(task)
  names = head.partition("(")[2].rpartition(")")[0]
  cases = "".join(
    f"  if [{names}] == [{arguments}]:\n    return {want}\n"
    for arguments, want in map(_wanted, task.checks)
  )
  return f"{source}\n{head}\n{cases}  return {task.checks[0].want}\n"


def _equal_to_all(task):
  """Something that claims to equal whatever it is compared with."""
  head, source = _body(task)
  return (
    f"class Any:\n  def __eq__(self, other):\n    return True\n{source}\n"
    f"{head}\n  return Any()\n"
  )


def _exits(line):
  def code(task):
    head, source = _body(task)
    return f"{line}\n{source}\n{head}\n  {line}\n"

  return code


SWE_CHEATS = {
  "constant": _constant,
  "by_heart": _by_heart,
  "equal_to_all": _equal_to_all,
  **{
    line: _exits(line)
    for line in (
      "exit(0)", "quit()", "raise SystemExit(0)", "import os; os._exit(0)",
      "from sys import exit; exit()", "open('result', 'w').write('[[true]]')",
      "print('[[true, 1], [true, 1], [true, 1]]')", "max = min = sum = len",
      "bool = list", "repr = str", "check = dict",
      "__builtins__['repr'] = str", "while True: pass", "[0] * 10 ** 9",
      "().__class__.__base__.__subclasses__()", "@property",
    )
  },
}  # fmt: skip


@pytest.mark.parametrize("cheat", SWE_CHEATS.values(), ids=SWE_CHEATS)
def test_swe_edits_that_fool_the_tests_do_not_pass(cheat):
  slow = cheat is SWE_CHEATS["while True: pass"]
  for i in range(1 if slow else 12):
    task = swe.make_task(i, "train")
    source = dict(task.files)[task.path]
    state = _end(
      swe,
      task,
      (
        _call("edit_file", path=task.path, old_str=source,
              new_str=cheat(task)),
        _call("run_tests"),
        _call("submit"),
      ),
    )  # fmt: skip
    assert state.done
    assert not swe.success(task, state), task


def test_swe_an_emptied_or_a_missing_file_does_not_pass():
  task = swe.make_task(0, "train")
  source = dict(task.files)[task.path]
  for new in ("", "\n", "def x():\n  return 1\n"):
    edit = _call("edit_file", path=task.path, old_str=source, new_str=new)
    assert not _succeeds(swe, task, (edit, _call("submit")))


# --- tau: what is claimed, guessed or done without leave.


def _tau_tasks(count, **wanted):
  """Tasks of one request with such an outcome and kind."""
  found, index = [], 0
  while len(found) < count:
    task = tau.make_task(index, "train")
    index += 1
    if len(task.requests) == 1 and all(
      getattr(task.requests[0], key) == value for key, value in wanted.items()
    ):
      found.append(task)
  return found


def _identified(task):
  request = task.requests[0]
  return (
    _say("Your name and pin, please?"),
    _call("find_customer", name=task.customer, pin=task.pin),
    _call("get_record", id=request.record),
  )


def test_tau_a_claim_is_no_deed():
  for task in _tau_tasks(10, outcome="do"):
    amount = task.requests[0].fact
    claims = [_say(f"It is done, you get ${amount}.")] * 6
    assert not _succeeds(tau, task, claims)
    assert not _succeeds(tau, task, (*_identified(task), *claims))


def test_tau_a_guess_or_a_list_of_all_facts_is_not_told():
  for task in _tau_tasks(10, kind="price"):
    right = (*_identified(task), _say(f"${task.requests[0].fact}."))
    assert _succeeds(tau, task, right)
    prices = " ".join(f"${n}" for n in range(12, 100))
    assert not _succeeds(tau, task, (*_identified(task), _say(prices)))
    assert not _succeeds(tau, task, right[:1] + right[-1:])  # Never looked.


def test_tau_refusing_all_or_handing_over_all_does_not_pay():
  refusal = [_say("It cannot be done: it is shipped, 40 days.")] * 5
  handed = (_call("transfer", summary="help"),)
  for outcome in ("do", "tell"):
    for task in _tau_tasks(10, outcome=outcome):
      for before in ((), _identified(task)):
        assert not _succeeds(tau, task, (*before, *refusal))
        assert not _succeeds(tau, task, (*before, *handed))
  for task in _tau_tasks(10, outcome="refuse"):
    unseen = [_say(f"It cannot be done: {task.requests[0].fact}.")]
    assert not _succeeds(tau, task, unseen)
  for task in _tau_tasks(5, outcome="transfer"):
    assert not _succeeds(tau, task, handed)  # Nobody asked who it is.
    assert _succeeds(tau, task, (*_identified(task), *handed))


def test_tau_a_forbidden_or_an_unconfirmed_deed_does_not_pay():
  for task in _tau_tasks(10, outcome="refuse", kind="cancel"):
    request = task.requests[0]
    deed = _call("cancel", id=request.record, reason="asked")
    told = _say(f"It cannot be cancelled, it is {request.fact}.")
    assert _succeeds(tau, task, (*_identified(task), told))
    assert not _succeeds(tau, task, (*_identified(task), deed, told))
  kept = [t for t in _tau_tasks(20, outcome="do", kind="cancel")]
  assert {t.rules.confirm for t in kept} == {True, False}
  for task in kept:
    request = task.requests[0]
    ask = _say(f"Shall I cancel {request.record}?")
    deed = _call("cancel", id=request.record, reason="asked")
    told = _say("It is cancelled.")
    before = _identified(task)
    assert _succeeds(tau, task, (*before, ask, deed, told))
    assert _succeeds(tau, task, (*before, deed, told)) is (
      not task.rules.confirm
    )
    # Twice, or another's record.
    other = next(r.id for r in task.records if r.owner != task.customer)
    strange = _call("get_record", id=other)
    state, answers = tau.step(task, _end(tau, task, before), strange)
    assert answers[0].content == "No such record of this customer."


def test_tau_a_customer_is_found_by_name_and_pin_only():
  task = _tau_tasks(1, outcome="do")[0]
  for name, pin in ((task.customer, task.pin + 1), ("", task.pin),
                    ("Nobody", task.pin)):  # fmt: skip
    find = _call("find_customer", name=name, pin=pin)
    assert not _end(tau, task, (find,)).found
  early = _call("cancel", id=task.requests[0].record, reason="x")
  assert _end(tau, task, (early,)).records == task.records


# --- terminal: done is what the files say.


def _typed(line, complete=False):
  return _say(
    json.dumps(
      {
        "analysis": "",
        "plan": "",
        "commands": [{"keystrokes": f"{line}\n"}],
        "task_complete": complete,
      }
    )
  )


def test_terminal_the_goal_must_be_there_and_nothing_else():
  for i in range(60):
    task = terminal.make_task(i, "train")
    way = task.draft.ways[0]
    assert _succeeds(terminal, task, (_typed(way, True),))
    assert not _succeeds(terminal, task, (_typed(way),))  # Not finished.
    for extra in ("touch more", "echo x >> more", "rm -rf *"):
      assert not _succeeds(terminal, task, (_typed(f"{way}; {extra}", True),))
    for wrong in task.draft.wrong:
      assert not _succeeds(terminal, task, (_typed(wrong, True),)), task


def test_terminal_nothing_happens_after_the_end():
  task = terminal.make_task(0, "train")
  ended = _end(terminal, task, (_typed("ls", True),))
  after, answers = terminal.step(task, ended, _typed(task.draft.ways[0], True))
  assert after == ended and answers == ()


# --- search: one answer, and one try.


def test_search_many_answers_are_none():
  for i in range(20):
    task = search.make_task(i, "train")
    right = _call("answer", answer=f"The {task.answer}.", because="")
    assert _succeeds(search, task, (right,))
    for text in ("", "the", f"{task.answer} or {task.legs[0].start}",
                 " ".join(task.corpus.titles), task.answer[:-1]):  # fmt: skip
      wrong = _call("answer", answer=text, because=task.answer)
      assert not _succeeds(search, task, (wrong, right))
    both = dataclasses.replace(wrong, calls=wrong.calls + right.calls)
    assert not _succeeds(search, task, (both,))


def test_search_pages_are_read_only_where_they_were_found():
  task = search.make_task(0, "train")
  page = task.legs[-1].page
  _, answers = search.step(
    task, search.reset(task)[0], _call("visit", page=page, goal="all")
  )
  assert answers[0].content == "Not among the results."


def test_no_world_reaches_the_machine():
  """tau, terminal and search are values: they import nothing that acts."""
  import ast
  import pathlib

  folder = pathlib.Path(base.__file__).parent
  for path in (*folder.glob("t*/*.py"), *folder.glob("search/*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] + [getattr(node, "module", "")]
        assert not {"os", "sys", "subprocess", "shutil", "io"} & set(names)
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        assert node.func.id not in ("open", "exec", "eval", "compile"), path
