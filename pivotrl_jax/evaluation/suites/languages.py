"""Facts and words in German, French and Spanish; the answer is a short
text, that of the right choice.

As in `knowledge`, the facts are in the training split too.
"""

import functools
from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base
from pivotrl_jax.evaluation.suites import facts
from pivotrl_jax.evaluation.suites import knowledge

STANDS_FOR = "MMLU-ProX"
# The question of a capital, and that of a word, in each language.
_ASKED = (
  ("Wie heißt die Hauptstadt? {x}", "Was heißt auf Deutsch: {x}?"),
  ("Quelle est la capitale ? {x}", "Comment dit-on en français : {x} ?"),
  ("¿Cuál es la capital? {x}", "¿Cómo se dice en español: {x}?"),
)


def make(rng: np.random.Generator) -> base.Draft:
  """A question with five choices; to be answered with the text of one."""
  language = int(rng.integers(len(_ASKED)))
  kind = int(rng.integers(2))
  table = _table(language, kind)
  topic = envs_base.pick(rng, tuple(table))
  question = _ASKED[language][kind].format(x=topic)
  prompt, _ = knowledge.choices(rng, question, table, topic)
  return base.Draft(prompt, table[topic], {"answer": table[topic]})


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether the text is that of the right choice."""
  return base.normal(text) == base.normal(check["answer"])


@functools.cache
def _table(language, kind):
  """Topic -> answer in a language."""
  if kind == 1:
    return {word: names[language] for word, names in facts.WORDS.items()}
  return {
    names[language + 1]: facts.CAPITALS.get(names[0], (names[0],) * 3)[language]
    for names in facts.COUNTRIES.values()
  }
