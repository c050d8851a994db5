"""Questions of two or three hops over an encyclopedia.

A hop is a fact of the entry one is at ("the founder of X"), or the way back
("the firm founded by X"). A task is a function of (split, index): every
encyclopedia gives `EACH` questions, and the entry that a question begins with
decides the split.
"""

import dataclasses
import functools

from pivotrl_jax.envs import base
from pivotrl_jax.envs.search import corpus as corpus_lib

EACH = 60  # Questions of an encyclopedia.


@dataclasses.dataclass(frozen=True)
class Hop:
  """One step of a question.

  Attributes:
    kind: of the entry that it starts from.
    relation: the fact that it follows.
    back: whether it goes from the fact's value to the entry that has it.
    phrases: ways to say it, of `{x}`, where it starts.
    queries: what to search for, best first.
    goals: what to look for on the page.
  """

  kind: str
  relation: str
  back: bool
  phrases: tuple[str, ...]
  queries: tuple[str, ...]
  goals: tuple[str, ...]


def _fact(kind, relation, *phrases):
  """A fact of the entry itself."""
  return Hop(
    kind,
    relation,
    False,
    (f"the {relation} of {{x}}", *phrases),
    (f"{{x}} {relation}", f"{relation} of {{x}}", f"the {relation} of {{x}}",
     "{x}"),
    (f"{relation} of {{x}}", f"the {relation} of {{x}}", f"{{x}} {relation}"),
  )  # fmt: skip


def _back(kind, relation, goal_kind, words):
  """The entry of `goal_kind` whose fact it is."""
  return Hop(
    kind,
    relation,
    True,
    (f"the {goal_kind} {words} {{x}}",),
    (f"{goal_kind} {words} {{x}}", f"{words} {{x}} {goal_kind}",
     f"{goal_kind} {{x}}"),
    (f"{goal_kind} {words} {{x}}", f"the {goal_kind} {words} {{x}}"),
  )  # fmt: skip


HOPS = (
  _fact("person", "birthplace", "the town where {x} was born"),
  _fact("person", "birth year"),
  _fact("person", "job"),
  _fact("person", "spouse", "the person married to {x}"),
  _fact("town", "river", "the river through {x}"),
  _fact("town", "region", "the region around {x}"),
  _fact("town", "mayor"),
  _fact("river", "length"),
  _fact("river", "mouth"),
  _fact("firm", "founder", "the person who founded {x}"),
  _fact("firm", "seat"),
  _fact("firm", "product"),
  _fact("book", "author", "the person who wrote {x}"),
  _fact("book", "setting"),
  _fact("region", "export"),
  _fact("region", "capital"),
  _back("person", "founder", "firm", "founded by"),
  _back("person", "author", "book", "by"),
  _back("person", "mayor", "town", "whose mayor is"),
)


@dataclasses.dataclass(frozen=True)
class Leg:
  """A hop as a question has it: from `start` to `value`, told on `page`."""

  hop: Hop
  start: str
  value: str
  page: str


@dataclasses.dataclass(frozen=True)
class Task:
  """One question.

  Attributes:
    id: `search-SPLIT-INDEX`.
    split, number: of the encyclopedia.
    question: as the user asks it.
    legs: the hops, in order; the last one's value is the answer.
  """

  id: str
  split: str
  number: int
  question: str
  legs: tuple[Leg, ...]

  @property
  def answer(self) -> str:
    return self.legs[-1].value

  @property
  def corpus(self) -> corpus_lib.Corpus:
    return corpus_lib.make(self.split, self.number)


def make_task(index: int, split: str) -> Task:
  """Task `index` of a split, always the same."""
  base.check_split(split)
  number, place = divmod(index, EACH)
  question, legs = _questions(split, number)[place]
  return Task(f"search-{split}-{index}", split, number, question, legs)


@functools.lru_cache(maxsize=64)
def _questions(split, number):
  """`EACH` different questions of an encyclopedia."""
  found = corpus_lib.make(split, number)
  rng = base.generator("search", "questions", split, number)
  starts = [t for t in found.titles if base.split_of(t) == split]
  backward = _backward(found)
  questions: dict[str, tuple[Leg, ...]] = {}
  while len(questions) < EACH:
    title = base.pick(rng, starts)
    legs = _legs(rng, found, backward, title, int(rng.integers(2, 4)))
    if legs is not None:
      questions.setdefault(_asked(rng, legs), legs)
  return tuple(questions.items())


def _backward(found):
  """(relation, value) -> title, for the ways back."""
  return {
    (relation, value): article.title
    for article in found.articles.values()
    for relation, value in article.facts.items()
  }


def _legs(rng, found, backward, start, count):
  """`count` hops from `start` that go round no circle; None where stuck."""
  legs, place = [], start
  for left in reversed(range(count)):
    article = found.articles[place]
    ways = []
    for hop in HOPS:
      if hop.kind != article.kind:
        continue
      value = article.facts.get(hop.relation)
      if hop.back:
        value = backward.get((hop.relation, place))
      if value is None or value in (start, *(leg.value for leg in legs)):
        continue
      if not left or value in found.articles:
        page = value if hop.back else place
        ways.append(Leg(hop, place, value, page))
    if not ways:
      return None
    legs.append(base.pick(rng, ways))
    place = legs[-1].value
  if all(leg.hop.back for leg in legs) or legs[-1].hop.back and count == 2:
    return None
  return tuple(legs)


def _asked(rng, legs):
  """The question in words."""
  text = legs[0].start
  for leg in legs:
    text = base.pick(rng, leg.hop.phrases).format(x=text)
  return base.pick(rng, (f"What is {text}?", f"Find {text}.",
                         f"I look for {text}."))  # fmt: skip
