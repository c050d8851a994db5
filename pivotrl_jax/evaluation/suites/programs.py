"""Writing small functions from a description; hidden tests decide."""

import builtins
import math
from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.envs import sandbox
from pivotrl_jax.evaluation.suites import base

STANDS_FOR = "LiveCodeBench"
NAMES = ("f", "g", "run", "calc", "solve", "work", "find", "make", "do", "get")
# (arguments, what it does, its body, calls): {k} and {j} are drawn.
_KINDS = (
  ("a, b", "a times {k} plus b", "return a * {k} + b", ("2, 5", "7, 1")),
  ("a, b", "b times {k} minus a", "return b * {k} - a", ("2, 5", "9, 4")),
  ("a, b", "the larger of a and b, plus {k}", "return max(a, b) + {k}",
   ("3, 8", "9, 1")),
  ("a, b", "the smaller of a and b, times {k}", "return min(a, b) * {k}",
   ("3, 8", "9, 1")),
  ("a", "{k} times a, plus {j}", "return {k} * a + {j}", ("4", "11")),
  ("a", "the rest of a divided by {k}, plus {j}", "return a % {k} + {j}",
   ("17", "30")),
  ("a", "a if it is over {k}, else {j}", "return a if a > {k} else {j}",
   ("1", "50")),
  ("a", "whether a is from {k} to {m}", "return {k} <= a <= {m}",
   ("1", "{k}", "99")),
  ("xs", "the sum of xs, plus {k}", "return sum(xs) + {k}",
   ("[1, 2, 3]", "[]")),
  ("xs", "the numbers of xs over {k}", "return [x for x in xs if x > {k}]",
   ("[1, 5, 12]", "[9, 2, 3, 11]")),
  ("xs", "the numbers of xs under {k}, each plus {j}",
   "return [x + {j} for x in xs if x < {k}]", ("[1, 5, 12]", "[9, 2, 3, 11]")),
  ("xs", "how many of xs are over {k}",
   "return len([x for x in xs if x > {k}])", ("[1, 5, 12]", "[9, 2, 3, 11]")),
  ("xs", "each of xs times {k}, plus {j}", "return [x * {k} + {j} for x in xs]",
   ("[1, 5]", "[0, 2, 3]")),
  ("xs", "the {k} largest of xs", "return sorted(xs)[-{k}:]",
   ("[4, 9, 1, 7, 3, 8, 2, 6, 5, 10, 12]",)),
  ("s", "s in capitals, {k} times", "return s.upper() * {k}",
   ("'ab'", "'x y'")),
  ("s", "s backwards, {k} times", "return s[::-1] * {k}", ("'abc'", "'xy'")),
  ("s", "the first {k} letters of s, then '{w}'", "return s[:{k}] + '{w}'",
   ("'abcdefghijklm'", "'xy'")),
  ("s", "s with '{w}' {k} times before it", "return '{w}' * {k} + s",
   ("'abc'", "'xy'")),
)  # fmt: skip
_WORDS = ("a", "no", "go", "up", "ox", "hi", "pi", "yes", "end", "sun", "tea")


def make(rng: np.random.Generator) -> base.Draft:
  """A function to write, and what it must give."""
  arguments, what, body, calls = envs_base.pick(rng, _KINDS)
  k = base.number(rng, 2, 9)
  fields = {
    "k": k, "j": base.number(rng, 2, 30), "m": k + base.number(rng, 2, 40),
    "w": envs_base.pick(rng, _WORDS),
  }  # fmt: skip
  name = envs_base.pick(rng, NAMES)
  code = f"def {name}({arguments}):\n  {body.format(**fields)}"
  calls = [f"{name}({c.format(**fields)})" for c in calls]
  return base.Draft(
    f"Write {name}({arguments}) that returns {what.format(**fields)}.",
    code,
    {"calls": calls, "code": code},
  )


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the function gives what the right one gives."""
  return same_results(base.code_of(text), check["code"], check["calls"])


def same_results(code: str, right: str, calls: list[str]) -> bool:
  """Whether two pieces of code give the same, called in the sandbox."""
  tests = [sandbox.Check("code.py", call, "None") for call in calls]
  got = sandbox.run_checks({"code.py": code}, tests)
  wanted = _results(right, calls)
  return all(_same(w, g.got) for w, g in zip(wanted, got, strict=True))


def _results(code, calls):
  """What code of our own gives, shown as the sandbox shows it."""
  scope = {"__builtins__": {n: getattr(builtins, n) for n in sandbox.BUILTINS}}
  exec(code, scope)  # pylint: disable=exec-used
  return [repr(eval(call, scope))[:80] for call in calls]


def _same(want, got):
  """Whether two values are equal, as they are shown; numbers nearly so."""
  if want == got:
    return True
  try:
    return math.isclose(float(want), float(got), rel_tol=1e-9)
  except ValueError:  # No numbers.
    return False
