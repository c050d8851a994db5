"""School mathematics: sums and small stories, worked out step by step."""

from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base

STANDS_FOR = "MATH500"
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim")
THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "pens", "shells")


def make(rng: np.random.Generator) -> base.Draft:
  """Two steps of plus, minus or times, bare or in a story."""
  return envs_base.pick(rng, (_bare, _story, _boxes, _rest))(rng)


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the last number is the result."""
  return base.last_number(text) == check["result"]


def _draft(prompt, steps, result):
  return base.Draft(prompt, ", ".join(steps), {"result": str(result)})


def _bare(rng):
  a, b, c = (base.number(rng, 2, 99) for _ in range(3))
  if rng.random() < 0.5:
    c = base.number(rng, 2, a + b)
    steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
    return _draft(f"Compute {a} + {b} - {c}.", steps, a + b - c)
  a, b = a % 9 + 2, b % 9 + 2
  steps = [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {a * b + c}"]
  return _draft(f"Compute {a} * {b} + {c}.", steps, a * b + c)


def _story(rng):
  name, thing = envs_base.pick(rng, NAMES), envs_base.pick(rng, THINGS)
  a, b = base.number(rng, 10, 60), base.number(rng, 2, 40)
  c = base.number(rng, 2, a + b - 1)
  steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
  return _draft(
    f"{name} has {a} {thing}, gets {b} more and gives {c} away. How many are"
    " left?",
    steps,
    a + b - c,
  )


def _boxes(rng):
  name, thing = envs_base.pick(rng, NAMES), envs_base.pick(rng, THINGS)
  a, b, c = (base.number(rng, 2, n) for n in (9, 9, 30))
  steps = [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {a * b + c}"]
  return _draft(
    f"{name} has {a} boxes of {b} {thing} each and {c} more. How many are"
    " there?",
    steps,
    a * b + c,
  )


def _rest(rng):
  name, thing = envs_base.pick(rng, NAMES), envs_base.pick(rng, THINGS)
  b, each, left = (base.number(rng, 2, n) for n in (9, 9, 9))
  a = b * each + left
  steps = [f"{b} * {each} = {b * each}", f"{a} - {b * each} = {left}"]
  return _draft(
    f"{name} has {a} {thing} and gives {each} to each of {b} friends. How many"
    " stay?",
    steps,
    left,
  )
