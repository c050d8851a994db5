"""Files with a bug, five tools on them, and the hidden tests.

A task is a function of (split, index): an odd hash bucket of its function's
name belongs to "eval", an even one to "train", and "validation" has verbs of
its own, so no function name, hence no task, is in two. Names, arguments,
constants and the kind of function give far more than 100,000 tasks a split.
Success is the hidden tests', run in a sandbox; `run_tests` reports on some of
them.

Everything the world says is short: a whole episode is a few hundred tokens.
"""

import dataclasses
import functools
import hashlib
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs import sandbox
from pivotrl_jax.envs.swe import tasks

DOMAIN = "swe"
ROW: dict[str, Any] = {}
SYSTEM = "You fix bugs in small Python files. Use the tools, then submit."
_MAX_HITS = 4

TOOLS: tuple[dict[str, Any], ...] = (
    base.tool("grep", "Find lines.", ("pattern",), pattern="string"),
    base.tool(
        "view_file", "Show a file or lines of it.", ("path",),
        path="string", start="integer", end="integer",
    ),
    base.tool(
        "edit_file", "Replace text that occurs once.",
        ("path", "old_str", "new_str"),
        path="string", old_str="string", new_str="string",
    ),
    base.tool("run_tests", "Run the tests."),
    base.tool("submit", "Finish."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
  """One bug.

  Attributes:
    id: `swe-SPLIT-INDEX`.
    files: source by path, as the agent finds them.
    fixed: the same with the bug mended.
    issue: what the user wrote.
    function: name of the function at fault.
    path: where it is.
    wrong: wrong lines that look like mends (for the expert's poor side).
    checks: the tests that `run_tests` reports on.
  """

  id: str
  files: tuple[tuple[str, str], ...]
  fixed: tuple[tuple[str, str], ...]
  issue: str
  function: str
  path: str
  wrong: tuple[str, ...]
  checks: tuple[sandbox.Check, ...]


@dataclasses.dataclass(frozen=True)
class State:
  """An episode so far. `log` is one entry an action: (tool, argument, ok)."""

  files: tuple[tuple[str, str], ...]
  done: bool = False
  log: tuple[tuple[str, str, bool], ...] = ()


def make_task(index: int, split: str) -> Task:
  """Task `index` of a split, always the same."""
  base.check_split(split)
  for attempt in range(1000):
    bug = tasks.make_bug(
      base.generator("swe", split, index, attempt),
      wanted=lambda name: split_of(name) == split,
      verbs=tasks.NEW_VERBS if split == "validation" else tasks.VERBS,
    )
    if bug is not None:
      return _task(f"swe-{split}-{index}", bug)
  raise RuntimeError(f"no {split} task {index} in 1000 attempts")


def split_of(function: str) -> str:
  """The split of all tasks about a function of this name."""
  if function.partition("_")[0] in tasks.NEW_VERBS:
    return "validation"
  digest = hashlib.blake2b(function.encode(), digest_size=1).digest()[0]
  return "eval" if digest % 2 == 1 else "train"


def _task(name, bug):
  return Task(
    id=name,
    files=bug.files,
    fixed=bug.fixed,
    issue=bug.issue,
    function=bug.function,
    path=bug.path,
    wrong=bug.wrong,
    checks=tuple(sandbox.Check(bug.path, c, w) for c, w in bug.checks),
  )


def reset(task: Task) -> tuple[State, tuple[types.Message, ...]]:
  """The first state, the system prompt and the issue."""
  names = ", ".join(path for path, _ in task.files)
  return State(task.files), (
    types.Message("system", SYSTEM),
    types.Message("user", f"{task.issue}\nFiles: {names}"),
  )


def step(
  task: Task, state: State, action: types.Action | types.ParseFailure
) -> tuple[State, tuple[types.Message, ...]]:
  """Carries out an action; whatever the model wrote gets an answer."""
  if isinstance(action, types.ParseFailure):
    return _log(state, "", "", False), (
      types.Message("user", f"Bad tool call: {action.reason}."),
    )
  if action.type == "message":
    return _log(state, "", "", False), (types.Message("user", "Use a tool."),)
  return base.answer_calls(action.calls, state, functools.partial(_call, task))


def success(task: Task, state: State) -> bool:
  """Whether the episode was submitted and every test passes.

  Those that the agent could see, and further ones: what gives their answers
  by heart, or the same to all, is no mend.
  """
  if not state.done:
    return False
  further = tasks.more_checks(
    base.generator("swe", "further checks", task.id),
    dict(task.fixed)[task.path],
    task.checks[0].call,
  )
  checks = task.checks + tuple(
    sandbox.Check(task.path, call, want) for call, want in further
  )
  return all(r.passed for r in sandbox.run_checks(dict(state.files), checks))


def _call(task, state, call):
  """One tool call -> next state and its answer."""
  arguments = base.read_arguments(call, TOOLS)
  if isinstance(arguments, str):
    return _log(state, call.name, "", False), arguments
  return _TOOLS[call.name](task, state, **arguments)


def _grep(task, state, pattern):
  del task
  hits = [
    f"{path}:{i}:{line.strip()}"
    for path, source in state.files
    for i, line in enumerate(source.splitlines(), 1)
    if pattern and pattern in line
  ]
  state = _log(state, "grep", pattern, bool(hits))
  return state, "\n".join(hits[:_MAX_HITS]) or "No match."


def _view_file(task, state, path, start=1, end=10**6):
  del task
  source = dict(state.files).get(path)
  state = _log(state, "view_file", path, source is not None)
  if source is None:
    return state, "No such file."
  lines = source.splitlines()[max(start, 1) - 1 : max(end, 0)]
  return state, "\n".join(lines) or "No such lines."


def _edit_file(task, state, path, old_str, new_str):
  del task
  source = dict(state.files).get(path)
  count = source.count(old_str) if source and old_str else 0
  state = _log(state, "edit_file", path, count == 1)
  if source is None:
    return state, "No such file."
  if count != 1:
    return state, f"old_str occurs {count} times."
  files = tuple(
    (name, text.replace(old_str, new_str) if name == path else text)
    for name, text in state.files
  )
  return dataclasses.replace(state, files=files), "Edited."


def _run_tests(task, state):
  results = sandbox.run_checks(dict(state.files), task.checks)
  failed = [
    (check, r)
    for check, r in zip(task.checks, results, strict=True)
    if not r.passed
  ]
  state = _log(state, "run_tests", "", not failed)
  if not failed:
    return state, "All tests pass."
  check, result = failed[0]
  return state, (
    f"{len(failed)} of {len(results)} fail: {check.call} gave"
    f" {result.got}, not {check.want}"
  )


def _submit(task, state):
  del task
  return dataclasses.replace(_log(state, "submit", "", True), done=True), (
    "Submitted."
  )


def _log(state, tool, argument, ok):
  return dataclasses.replace(state, log=(*state.log, (tool, argument, ok)))


_TOOLS = {
  "grep": _grep,
  "view_file": _view_file,
  "edit_file": _edit_file,
  "run_tests": _run_tests,
  "submit": _submit,
}
