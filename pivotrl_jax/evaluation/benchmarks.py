"""Questions outside the domain, without tools: what training may forget.

Deterministic by (split, seed, index); a hash of a question's text decides
its split, so the splits share none.
"""

import dataclasses
import hashlib

import numpy as np

from pivotrl_jax import types

WORDS = (
    "red", "blue", "green", "gold", "tree", "lake", "moon", "sun", "cat",
    "dog", "bird", "fish", "milk", "bread", "salt", "rain", "snow", "wind",
    "fire", "sand", "rock", "leaf", "root", "seed", "hand", "foot", "head",
    "door", "wall", "roof", "road", "ship", "cart", "coin", "ring", "lamp",
)  # fmt: skip

SPLITS = ("train", "eval", "watch")


@dataclasses.dataclass(frozen=True)
class Question:
  """One question, as a chat, with the one right answer."""

  id: str
  messages: tuple[types.Message, ...]
  answer: str


def questions(split: str, seed: int, count: int) -> list[Question]:
  """The first `count` questions of a split ("train", "eval" or "watch")."""
  if split not in SPLITS:
    raise ValueError(f"split {split!r}; expected one of {SPLITS}")
  found: list[Question] = []
  rng = np.random.default_rng([seed, SPLITS.index(split)])
  while len(found) < count:
    text, answer = _KINDS[rng.integers(len(_KINDS))](rng)
    if split_of(text) != split:
      continue
    found.append(
      Question(
        f"{split}-{seed}-{len(found)}",
        (types.Message("user", text),),
        answer,
      )
    )
  return found


def split_of(text: str) -> str:
  """Three quarters of all texts are "train", an eighth each of the rest."""
  digest = hashlib.blake2b(text.encode(), digest_size=1).digest()[0]
  return {0: "eval", 1: "watch"}.get(digest % 8, "train")


def grade(question: Question, action: types.Action) -> bool:
  """Whether the reply is the answer, but for case, blanks and a full stop."""
  said = action.content.strip().lower().removesuffix(".")
  return action.type == "message" and said == question.answer.lower()


def _words(rng, low, high):
  return [str(w) for w in rng.choice(WORDS, rng.integers(low, high), False)]


def _last(rng):
  words = _words(rng, 3, 6)
  return f"What is the last word of: {' '.join(words)}?", words[-1]


def _first(rng):
  words = _words(rng, 3, 6)
  return f"What is the first word of: {' '.join(words)}?", words[0]


def _count(rng):
  words = _words(rng, 2, 8)
  return f"How many words are in: {' '.join(words)}?", str(len(words))


def _sum(rng):
  a, b = rng.integers(0, 50, 2)
  return f"What is {a} + {b}?", str(a + b)


def _larger(rng):
  a, b = rng.choice(100, 2, False)
  return f"Which is larger, {a} or {b}?", str(max(a, b))


def _backwards(rng):
  words = _words(rng, 2, 4)
  return f"Say backwards: {' '.join(words)}", " ".join(reversed(words))


_KINDS = (_last, _first, _count, _sum, _larger, _backwards)
