"""Out of domain: eight suites that stand for the paper's eight benchmarks.

They are in the base policy's training mixture and never in the agent data:
what training on a domain costs elsewhere shows on them.
"""

from pivotrl_jax.evaluation.suites import arithmetic
from pivotrl_jax.evaluation.suites import base
from pivotrl_jax.evaluation.suites import contest
from pivotrl_jax.evaluation.suites import formulas
from pivotrl_jax.evaluation.suites import instructions
from pivotrl_jax.evaluation.suites import knowledge
from pivotrl_jax.evaluation.suites import languages
from pivotrl_jax.evaluation.suites import programs
from pivotrl_jax.evaluation.suites import translation

SUITES: dict[str, base.Suite] = {
  "instructions": instructions,
  "contest": contest,
  "arithmetic": arithmetic,
  "programs": programs,
  "formulas": formulas,
  "knowledge": knowledge,
  "languages": languages,
  "translation": translation,
}


def questions(
  name: str, split: str, seed: int, count: int
) -> list[base.Question]:
  """The first `count` different questions of a suite's split."""
  return base.questions(name, SUITES[name], split, seed, count)


def spread(split: str, seed: int, count: int) -> list[base.Question]:
  """`count` questions of a split, as many of each suite to within one."""
  whole, more = divmod(count, len(SUITES))
  return [
    question
    for i, name in enumerate(SUITES)
    for question in questions(name, split, seed, whole + (i < more))
  ]


def grade(question: base.Question, text: str) -> bool:
  """Whether a reply to a question is right."""
  return SUITES[question.suite].grade(question.draft.check, text)
