"""A small encyclopedia under a BM25 index, one of endlessly many.

Each is drawn from a seed: people, towns, rivers, firms, books and regions
with facts that name each other. Nothing of it is true, so nothing can be
known by heart: a question must be looked up.
"""

import dataclasses
import functools
import logging
import re
from typing import Any

import numpy as np

from pivotrl_jax.envs import base

COUNTS = {
  "person": 40, "town": 20, "river": 10, "firm": 20, "book": 24, "region": 6,
}  # fmt: skip
_GIVEN = (
    "Ada", "Arne", "Bela", "Boris", "Cleo", "Dario", "Edda", "Elio", "Fabia",
    "Gert", "Hedda", "Ilse", "Imre", "Jana", "Jens", "Kira", "Lars", "Livia",
    "Malte", "Mina", "Nils", "Nora", "Odo", "Orla", "Pavel", "Petra", "Rolf",
    "Runa", "Sven", "Thea", "Udo", "Vera", "Wanda", "Willem", "Yara", "Zeno",
)  # fmt: skip
_STARTS = (
    "Bar", "Bel", "Bor", "Cal", "Cor", "Dal", "Dor", "El", "Fal", "Fen",
    "Gar", "Gol", "Har", "Hol", "Ist", "Jor", "Kal", "Kor", "Lan", "Lor",
    "Mal", "Mor", "Nar", "Nor", "Or", "Pel", "Quin", "Ral", "Ros", "Sal",
    "Sor", "Tal", "Tor", "Ul", "Val", "Vor", "Wal", "Yor", "Zan", "Zel",
)  # fmt: skip
_ENDS = {
  "person": ("an", "as", "berg", "by", "en", "er", "ic", "in", "ley", "man",
             "ner", "ov", "sen", "son", "ski", "us"),
  "town": ("bach", "bury", "dale", "ditch", "ford", "gate", "ham", "hurst",
           "mere", "port", "stad", "stead", "ton", "vik", "ville", "wick"),
  "river": ("a", "e", "eno", "ia", "is", "o", "ona", "une"),
  "region": ("aria", "avia", "land", "mark", "onia", "shire"),
}  # fmt: skip
_GOODS = (
    "boats", "boots", "bricks", "candles", "clocks", "cloth", "drums", "flutes",
    "glass", "gloves", "hats", "knives", "lamps", "locks", "nails", "paint",
    "paper", "pens", "pianos", "pumps", "rope", "sails", "scales", "soap",
    "tents", "tiles", "toys", "trams",
)  # fmt: skip
_JOBS = (
    "actor", "baker", "chemist", "dancer", "doctor", "farmer", "lawyer",
    "miller", "painter", "pilot", "sailor", "singer", "smith", "teacher",
)  # fmt: skip
_FIRMS = ("Mills", "Motors", "Sons", "Trading", "Works", "Brothers")
_BOOKS = ("Garden", "House", "Island", "Journey", "Letter", "Mirror", "Road",
          "Secret", "Shadow", "Winter")  # fmt: skip
_SEAS = ("Amber Sea", "Coral Sea", "Grey Sea", "Long Bay", "Sand Bay")


@dataclasses.dataclass(frozen=True)
class Article:
  """One entry.

  Attributes:
    title: unique.
    kind: a key of `COUNTS`.
    facts: value by relation; values that are titles have an article.
    text: what it says.
  """

  title: str
  kind: str
  facts: dict[str, str]
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """Articles by title, in order, and the index over them."""

  articles: dict[str, Article]
  index: Any
  titles: tuple[str, ...]

  def search(self, query: str, count: int) -> list[Article]:
    """The best `count` articles that share a word with the query."""
    words = _tokens(query)
    known = [w for w in words if w in self.index.vocab_dict]
    if not known:
      return []
    scores = self.index.get_scores(known)
    # Equal scores keep the order of the articles.
    best = np.argsort(-scores, kind="stable")[:count]
    return [self.articles[self.titles[i]] for i in best if scores[i] > 0]


@functools.lru_cache(maxsize=64)
def make(split: str, number: int) -> Corpus:
  """Encyclopedia `number` of a split."""
  # It calls jax when it is imported, which worlds without it need not do.
  import bm25s

  bm25s.logger.setLevel(logging.WARNING)  # Or else a line an encyclopedia.
  articles = _articles(base.generator("search", "corpus", split, number))
  index = bm25s.BM25(backend="numpy")
  index.index(
    [_tokens(f"{a.title} {a.text}") for a in articles], show_progress=False
  )
  return Corpus(
    {a.title: a for a in articles}, index, tuple(a.title for a in articles)
  )


def _tokens(text):
  return re.findall(r"[a-z0-9]+", text.lower())


def _articles(rng):
  """All articles of an encyclopedia, in random order."""
  names = {kind: _names(rng, kind, count) for kind, count in COUNTS.items()}
  facts = {name: (kind, _facts(rng, kind, names, name))
           for kind, each in names.items() for name in each}  # fmt: skip
  for partners in zip(names["person"][::2], names["person"][1::2]):
    for one, other in (partners, partners[::-1]):
      facts[one][1]["spouse"] = other
  # One mayor a town, one founder a firm: the way back is unique.
  for relation, kind in (("mayor", "town"), ("founder", "firm"),
                         ("author", "book"), ("capital", "region")):  # fmt: skip
    pool = names["town" if relation == "capital" else "person"]
    chosen = rng.choice(len(pool), COUNTS[kind], replace=False)
    for name, i in zip(names[kind], chosen):
      facts[name][1][relation] = pool[i]
  found = [
    Article(name, kind, each, _text(name, kind, each))
    for name, (kind, each) in facts.items()
  ]
  return [found[i] for i in rng.permutation(len(found))]


def _names(rng, kind, count):
  """Different names of a kind."""
  found: dict[str, None] = {}
  while len(found) < count:
    start = base.pick(rng, _STARTS)
    if kind == "person":
      end = base.pick(rng, _ENDS["person"])
      found[f"{base.pick(rng, _GIVEN)} {start}{end}"] = None
    elif kind == "firm":
      middle = base.pick(rng, _ENDS["person"])
      found[f"{start}{middle} {base.pick(rng, _FIRMS)}"] = None
    elif kind == "book":
      middle = base.pick(rng, _ENDS["town"])
      found[f"The {start}{middle} {base.pick(rng, _BOOKS)}"] = None
    else:
      found[start + base.pick(rng, _ENDS[kind])] = None
  return list(found)


def _facts(rng, kind, names, name):
  """What is drawn for one entry by itself."""
  del name
  town = base.pick(rng, names["town"])
  year = str(int(rng.integers(1700, 1990)))
  return {
    "person": {"birthplace": town, "birth year": year,
               "job": base.pick(rng, _JOBS)},
    "town": {"river": base.pick(rng, names["river"]),
             "region": base.pick(rng, names["region"])},
    "river": {"length": f"{int(rng.integers(40, 900))} km",
              "mouth": base.pick(rng, _SEAS)},
    "firm": {"seat": town, "product": base.pick(rng, _GOODS)},
    "book": {"setting": town, "year": year},
    "region": {"export": base.pick(rng, _GOODS)},
  }[kind]  # fmt: skip


def _text(name, kind, f):
  """An article's sentences; the first does not tell everything."""
  return {
    "person": lambda: (
      f"{name} is a {f['job']}, born in {f['birthplace']} in"
      f" {f['birth year']}. {name} is married to {f['spouse']}."
    ),
    "town": lambda: (
      f"{name} is a town in {f['region']}, on the river {f['river']}. Its"
      f" mayor is {f['mayor']}."
    ),
    "river": lambda: (
      f"The {name} is a river of {f['length']}. It ends in the {f['mouth']}."
    ),
    "firm": lambda: (
      f"{name} is a firm that makes {f['product']}, founded by {f['founder']}."
      f" Its seat is {f['seat']}."
    ),
    "book": lambda: (
      f"{name} is a book by {f['author']}, of {f['year']}. It is set in"
      f" {f['setting']}."
    ),
    "region": lambda: (
      f"{name} is a region that exports {f['export']}. Its capital is"
      f" {f['capital']}."
    ),
  }[kind]()
