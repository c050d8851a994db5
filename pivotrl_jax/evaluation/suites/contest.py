"""Contest mathematics: equations, series, divisors, remainders, worked out."""

import math
from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base

STANDS_FOR = "AIME25"


def make(rng: np.random.Generator) -> base.Draft:
  """A problem of several steps with a whole number as its answer."""
  kinds = (_system, _series, _divisors, _remainder, _greatest, _linear)
  return envs_base.pick(rng, kinds)(rng)


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the last number is the answer."""
  return base.last_number(text) == check["result"]


def _draft(prompt, steps, result):
  return base.Draft(prompt, ", ".join(steps), {"result": str(result)})


def _system(rng):
  x, y = base.number(rng, 2, 30), base.number(rng, 2, 30)
  x, y = max(x, y), min(x, y)
  k = base.number(rng, 2, 5)
  steps = [f"2x = {2 * x}", f"x = {x}", f"y = {y}", f"{x} + {k} * {y} ="
           f" {x + k * y}"]  # fmt: skip
  return _draft(
    f"x + y = {x + y} and x - y = {x - y}. Find x + {k}y.", steps, x + k * y
  )


def _series(rng):
  first, gap, count = (base.number(rng, 2, n) for n in (20, 9, 9))
  last = first + gap * (count - 1)
  total = count * (first + last) // 2
  steps = [
    f"last {last}", f"{first} + {last} = {first + last}",
    f"{first + last} * {count} / 2 = {total}",
  ]  # fmt: skip
  return _draft(
    f"Add {count} numbers that begin with {first} and grow by {gap}.",
    steps,
    total,
  )


def _divisors(rng):
  n, over = base.number(rng, 12, 120), base.number(rng, 1, 9)
  found = [d for d in range(1, n + 1) if n % d == 0 and d > over]
  shown = " ".join(map(str, found))
  return _draft(
    f"How many divisors of {n} are greater than {over}?",
    [shown, f"count {len(found)}"],
    len(found),
  )


def _remainder(rng):
  a, power, m = base.number(rng, 2, 20), base.number(rng, 2, 5), (
      base.number(rng, 5, 29))  # fmt: skip
  steps, value = [], 1
  for i in range(1, power + 1):
    value = value * a % m
    steps.append(f"{a}^{i} = {value}")
  return _draft(
    f"What is the remainder of {a}^{power} divided by {m}?", steps, value
  )


def _greatest(rng):
  d, a, b = (base.number(rng, 2, n) for n in (12, 15, 15))
  a, b = max(a, b) * d, min(a, b) * d
  result, steps = math.gcd(a, b), []
  x, y = a, b
  while y:
    steps.append(f"{x} % {y} = {x % y}")
    x, y = y, x % y
  return _draft(
    f"Find the greatest common divisor of {a} and {b}.",
    [*steps, f"gcd {result}"],
    result,
  )


def _linear(rng):
  a, x, b = (base.number(rng, 2, n) for n in (9, 30, 40))
  c = base.number(rng, 2, 9)
  steps = [f"{a}x = {a * x}", f"x = {x}", f"{c} * {x} = {c * x}"]
  return _draft(f"{a}x + {b} = {a * x + b}. Find {c}x.", steps, c * x)
