"""A scripted agent for files with bugs, and its mediocre double.

`act` is right at every turn, in one of several equally right ways: which
pattern it greps, whether it views a file or the lines that matter, with how
much context it quotes an edit, in which order it writes arguments. So exact
match with one demonstration misses much of what is right.

`act_poorly` does what mediocre agents do: junk searches, the wrong file,
the wrong mend, talk, submitting too early. At any state both are
possible, so that training can move mass from one to the other.
"""

from collections.abc import Callable

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.swe import environment
from pivotrl_jax.envs.swe import tasks


def act(
  task: environment.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """A right action: find, look, mend, test, submit."""
  wrong = _first_difference(task, state)
  if wrong is None:
    return base.call(rng, "submit" if _tested(state) else "run_tests")
  path = wrong[0]
  if not any(tool == "grep" and ok for tool, _, ok in state.log):
    name = task.function
    patterns = (name, f"def {name}", f"{name}(", f"def {name}(")
    return base.call(rng, "grep", pattern=str(rng.choice(patterns)))
  if not any(log[:2] == ("view_file", path) for log in state.log):
    return _view(rng, state, path)
  return _mend(rng, state, *wrong)


def act_poorly(
  task: environment.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """What a mediocre agent might do here instead."""
  return _POOR[rng.choice(len(_POOR), p=_POOR_SHARES)](task, state, rng)


def _wrong_mend(task, state, rng):
  """Mends the line at fault wrongly, or breaks a line that was right."""
  wrong = _first_difference(task, state)
  lines = dict(state.files)[task.path].splitlines()
  if wrong is not None and wrong[0] == task.path and task.wrong:
    at = wrong[1]
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    new = str(rng.choice(task.wrong)).strip()
    if indent + new != lines[at]:
      return _edit(rng, task.path, lines[at].strip(), new)
  returns = [x.strip() for x in lines if "return" in x]
  if not returns:  # Earlier mends have replaced the last of them.
    return _give_up(task, state, rng)
  old = str(rng.choice(returns))
  return _edit(rng, task.path, old, _swap(old))


def _swap(line):
  """A right-looking line made wrong."""
  for old, new in (
      (" + ", " - "), (" - ", " + "), ("max", "min"), ("min", "max"),
      (" > ", " < "), (" == ", " != "), (" * ", " + "), ("sum", "len"),
  ):  # fmt: skip
    if old in line:
      return line.replace(old, new)
  return line.replace("return ", "return not ")


def _junk_grep(task, state, rng):
  del task, state
  return base.call(rng, "grep", pattern=str(rng.choice(tasks.NOUNS)))


def _wrong_file(task, state, rng):
  others = [path for path, _ in state.files if path != task.path]
  return _view(rng, state, str(rng.choice(others)))


def _give_up(task, state, rng):
  del task, state
  return base.call(rng, "submit")


def _talk(task, state, rng):
  del state
  texts = (f"I looked at {task.function}.", "I think it is fixed now.")
  return types.Action("message", content=str(rng.choice(texts)))


_POOR: tuple[Callable[..., types.Action], ...] = (
    _wrong_mend, _junk_grep, _wrong_file, _give_up, _talk,
)  # fmt: skip
_POOR_SHARES = (0.4, 0.15, 0.15, 0.25, 0.05)


def _first_difference(task, state):
  """(path, line index, right line) of the first line to mend, or None."""
  fixed = dict(task.fixed)
  for path, source in state.files:
    pairs = zip(source.splitlines(), fixed[path].splitlines(), strict=False)
    for i, (have, want) in enumerate(pairs):
      if have != want:
        return path, i, want
  return None


def _tested(state):
  """Whether the tests passed since the last edit."""
  for tool, _, ok in reversed(state.log):
    if tool == "edit_file" and ok:
      return False
    if tool == "run_tests":
      return ok
  return False


def _view(rng, state, path):
  """The whole file, or a range that holds nearly all of it."""
  count = len(dict(state.files)[path].splitlines())
  form = rng.integers(3)
  if form == 0:
    return base.call(rng, "view_file", path=path)
  end = count if form == 1 else count + int(rng.integers(1, 3))
  return base.call(rng, "view_file", path=path, start=1, end=end)


def _mend(rng, state, path, at, right):
  """Replaces line `at`, quoted alone or with the line before it."""
  lines = dict(state.files)[path].splitlines()
  old, new = lines[at].strip(), right.strip()
  alone = sum(x.count(old) for x in lines) == 1
  if not alone or rng.random() < 0.3:
    before = lines[at - 1].strip()
    old, new = f"{before}\n{lines[at]}", f"{before}\n{right}"
  return _edit(rng, path, old, new)


def _edit(rng, path, old, new):
  return base.call(rng, "edit_file", path=path, old_str=old, new_str=new)
