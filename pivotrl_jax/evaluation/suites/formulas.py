"""Formulas of science as functions; hidden tests decide."""

from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base
from pivotrl_jax.evaluation.suites import programs

STANDS_FOR = "SciCode"
# Name, arguments, in words, the formula.
_FORMULAS = (
  ("force", "m, a", "mass m times acceleration a", "m * a"),
  ("speed", "s, t", "distance s over time t", "s / t"),
  ("energy", "m, v", "half of mass m times speed v squared", "m * v * v / 2"),
  ("momentum", "m, v", "mass m times speed v", "m * v"),
  ("pressure", "f, a", "force f over area a", "f / a"),
  ("density", "m, v", "mass m over volume v", "m / v"),
  ("power", "w, t", "work w over time t", "w / t"),
  ("voltage", "r, i", "resistance r times current i", "r * i"),
  ("charge", "i, t", "current i times time t", "i * t"),
  ("heat", "m, c, d", "mass m times capacity c times change d", "m * c * d"),
  ("fall", "g, t", "half of gravity g times time t squared", "g * t * t / 2"),
  ("area", "a, b", "half of side a times height b", "a * b / 2"),
  ("volume", "a, b, c", "the product of a, b and c", "a * b * c"),
  ("lens", "f, d", "f times d over f plus d", "f * d / (f + d)"),
  ("mean", "a, b, c", "the mean of a, b and c", "(a + b + c) / 3"),
  ("growth", "n, r", "number n times one plus rate r", "n * (1 + r)"),
  ("mix", "a, b", "the mean of a and b", "(a + b) / 2"),
  ("work", "f, s", "force f times distance s", "f * s"),
)  # fmt: skip
# What is done to the result: in words, around the formula.
_AFTER = (
  ("", "{x}"),
  (", plus {k}", "{x} + {k}"),
  (", less {k}", "{x} - {k}"),
  (", times {k}", "{x} * {k}"),
  (", but at most {k}", "min({x}, {k})"),
  (", but at least {k}", "max({x}, {k})"),
)


def make(rng: np.random.Generator) -> base.Draft:
  """A formula, perhaps with something done to its result."""
  name, arguments, words, formula = envs_base.pick(rng, _FORMULAS)
  after, around = envs_base.pick(rng, _AFTER)
  k = base.number(rng, 2, 60)
  expression = around.format(x=formula, k=k)
  code = f"def {name}({arguments}):\n  return {expression}"
  count = arguments.count(",") + 1
  calls = [
    f"{name}({', '.join(str(n) for n in rng.integers(1, 20, count))})"
    for _ in range(4)
  ]
  start = envs_base.pick(rng, ("Code", "Write", "Implement"))
  return base.Draft(
    f"{start} {name}({arguments}): {words}{after.format(k=k)}.",
    code,
    {"calls": calls, "code": code},
  )


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the function gives what the formula gives."""
  return programs.same_results(
    base.code_of(text), check["code"], check["calls"]
  )
