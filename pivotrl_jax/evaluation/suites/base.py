"""What a suite is, and what all suites share. No jax here.

A suite is a module with `make(rng) -> Draft` and `grade(check, text) -> bool`.
Its questions are drawn; a hash of a question's text decides its split.
"""

import dataclasses
import re
from typing import Any, Protocol
import unicodedata

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base


@dataclasses.dataclass(frozen=True)
class Draft:
  """A question before it has an id.

  Attributes:
    prompt: what is asked.
    answer: a right answer, as a base policy learns it.
    check: what the grader needs to know.
  """

  prompt: str
  answer: str
  check: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
  """A drawn question of a suite."""

  id: str
  suite: str
  draft: Draft

  @property
  def messages(self) -> tuple[types.Message, ...]:
    return (types.Message("user", self.draft.prompt),)


class Suite(Protocol):
  """A suite: a module. `STANDS_FOR` is the paper's benchmark."""

  STANDS_FOR: str

  def make(self, rng: np.random.Generator) -> Draft:
    """Draws a question."""

  def grade(self, check: dict[str, Any], text: str) -> bool:
    """Whether a reply is right; no reply is an exception."""


def questions(
  name: str, suite: Suite, split: str, seed: int, count: int
) -> list[Question]:
  """The first `count` different questions of one of `envs.base.SPLITS`."""
  base.check_split(split)
  rng = base.generator("suite", name, split, seed)
  found: dict[str, Draft] = {}
  while len(found) < count:
    draft = suite.make(rng)
    if base.split_of(draft.prompt) == split:
      found.setdefault(draft.prompt, draft)
  return [
    Question(f"{name}-{split}-{seed}-{i}", name, draft)
    for i, draft in enumerate(found.values())
  ]


def normal(text: str) -> str:
  """Text without case, outer blanks, repeated blanks and a last full stop."""
  folded = unicodedata.normalize("NFC", text).casefold()
  return " ".join(folded.split()).removesuffix(".").rstrip()


def last_number(text: str) -> str | None:
  """The last whole number of a text, as digits; None without one."""
  found = re.findall(r"-?\d+", text)
  if not found:
    return None
  sign = "-" if found[-1].startswith("-") else ""
  digits = found[-1].lstrip("-").lstrip("0") or "0"
  return digits if digits == "0" else sign + digits


def code_of(text: str) -> str:
  """A reply's code: what stands in its first fence, or all of it."""
  fenced = re.search(r"```(?:python)?\n(.*?)```", text, re.S)
  return (fenced[1] if fenced else text).strip("\n") + "\n"


def some(rng: np.random.Generator, words, count: int) -> list[Any]:
  """`count` different ones of `words`."""
  return [words[i] for i in rng.choice(len(words), count, replace=False)]


def number(rng: np.random.Generator, low: int, high: int) -> int:
  """A whole number from `low` to `high`, both in."""
  return int(rng.integers(low, high + 1))
