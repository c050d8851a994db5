"""Following instructions to the letter: order, case, separators, counts."""

from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base

STANDS_FOR = "IFBench"
WORDS = (
    "able", "acid", "bank", "bell", "boat", "cake", "coal", "corn", "dawn",
    "deer", "door", "duck", "east", "edge", "farm", "fire", "fish", "gate",
    "gold", "hand", "hill", "iron", "item", "jazz", "jump", "keen", "king",
    "lake", "leaf", "lion", "milk", "moon", "neck", "nest", "oven", "owl",
    "page", "park", "pear", "quit", "quiz", "rain", "ring", "road", "salt", "ship",
    "snow", "tall", "tent", "tree", "unit", "user", "vase", "view", "wind",
    "wolf", "wood", "yard", "year", "zero", "zone",
)  # fmt: skip
_ORDERS = {
  "as they are": lambda words: words,
  "backwards": lambda words: words[::-1],
  "in alphabetical order": sorted,
  "without the first": lambda words: words[1:],
  "without the last": lambda words: words[:-1],
}
_CASES = {"in capitals": str.upper, "with a capital each": str.capitalize}
_MARKS = {"commas": ", ", "dashes": "-", "slashes": "/", "plus signs": "+"}


def make(rng: np.random.Generator) -> base.Draft:
  """Words to write in a way, or words to find for a letter or an end."""
  kind = base.number(rng, 0, 5)
  if kind == 0:
    return _letter(rng)
  if kind == 1:
    return _line(rng)
  if kind == 2:
    return _times(rng)
  return _rewrite(rng)


def grade(check: dict[str, Any], text: str) -> bool:
  """Exact where one answer is right, else by what was asked of it."""
  said = text.strip()
  if "exact" in check:
    return said == check["exact"]
  if "letter" in check:
    words = [w.strip() for w in said.split(",")]
    return len(words) == len(set(words)) == check["count"] and all(
      w.isalpha() and len(w) > 2 and w.startswith(check["letter"])
      for w in words
    )
  words = said.split()
  return (
    len(words) == check["count"]
    and words[-1] == check["end"]
    and all(w.isalpha() for w in words)
    and len(set(words)) > 1
  )


def _rewrite(rng):
  words = base.some(rng, WORDS, base.number(rng, 3, 5))
  order = envs_base.pick(rng, tuple(_ORDERS))
  case = envs_base.pick(rng, (None, *_CASES))
  mark = envs_base.pick(rng, tuple(_MARKS))
  parts = [order, case, f"separated by {mark}"]
  ways = ", ".join(part for part in parts if part)
  found = _ORDERS[order](words)
  if case:
    found = [_CASES[case](w) for w in found]
  answer = _MARKS[mark].join(found)
  return base.Draft(
    f"Write these words {ways}: {' '.join(words)}", answer, {"exact": answer}
  )


def _times(rng):
  word, other = base.some(rng, WORDS, 2)
  count, mark = base.number(rng, 2, 5), envs_base.pick(rng, tuple(_MARKS))
  answer = _MARKS[mark].join([word] * count + [other])
  return base.Draft(
    f"Write {word} {count} times and then {other}, separated by {mark}.",
    answer,
    {"exact": answer},
  )


def _letter(rng):
  """Several words of a letter, but not one that the prompt names."""
  letters = sorted({w[0] for w in WORDS})
  letter = envs_base.pick(rng, letters)
  choices = [w for w in WORDS if w[0] == letter]
  count = base.number(rng, 2, max(2, len(choices) - 1))
  count = min(count, len(choices))
  topic = envs_base.pick(rng, WORDS)
  return base.Draft(
    f"Forget {topic}. Give {count} words that begin with {letter}, separated by"
    " commas.",
    ", ".join(base.some(rng, choices, count)),
    {"letter": letter, "count": count},
  )


def _line(rng):
  count, end = base.number(rng, 3, 6), envs_base.pick(rng, WORDS)
  others = [w for w in WORDS if w != end]
  return base.Draft(
    f"Write a line of exactly {count} words. The last must be {end}.",
    " ".join([*base.some(rng, others, count - 1), end]),
    {"count": count, "end": end},
  )
