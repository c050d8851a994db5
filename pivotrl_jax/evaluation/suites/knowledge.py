"""Facts, as multiple choice: the answer is a letter.

The facts themselves are in the training split too; held out are the choices.
"""

from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base
from pivotrl_jax.evaluation.suites import facts

STANDS_FOR = "MMLU-Pro"
LETTERS = "ABCDE"
_KINDS = (
  ("What is the capital of {x}?", {k: v[0] for k, v in facts.COUNTRIES.items()}),
  ("Which country has the capital {x}?",
   {v[0]: k for k, v in facts.COUNTRIES.items()}),
  ("What is the symbol of {x}?", facts.ELEMENTS),
  ("Which element has the symbol {x}?",
   {v: k for k, v in facts.ELEMENTS.items()}),
  ("What is a young {x} called?", facts.YOUNG),
  ("What is the opposite of {x}?", facts.OPPOSITES),
)  # fmt: skip


def make(rng: np.random.Generator) -> base.Draft:
  """A question about one fact with five choices."""
  words, table = envs_base.pick(rng, _KINDS)
  topic = envs_base.pick(rng, tuple(table))
  prompt, letter = choices(rng, words.format(x=topic), table, topic)
  return base.Draft(prompt, letter, {"letter": letter})


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the letter is said, and no more than it."""
  return base.normal(text) == base.normal(check["letter"])


def choices(
  rng: np.random.Generator, question: str, table: dict[str, str], topic: str
) -> tuple[str, str]:
  """A question with five choices below it, and the letter that is right."""
  right = table[topic]
  others = sorted(set(table.values()) - {right})
  shown = [right, *base.some(rng, others, len(LETTERS) - 1)]
  shown = [shown[i] for i in rng.permutation(len(shown))]
  lines = [f"{a}: {c}" for a, c in zip(LETTERS, shown, strict=True)]
  return "\n".join([question, *lines]), LETTERS[shown.index(right)]
