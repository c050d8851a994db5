"""Short sentences from English into German, French and Spanish.

A small grammar: an article, perhaps an adjective, a noun, a verb, an object.
Gender, case, and where the adjective stands are right in each language.
"""

import dataclasses
from typing import Any

import numpy as np

from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation.suites import base

STANDS_FOR = "WMT24++"
LANGUAGES = ("German", "French", "Spanish")


@dataclasses.dataclass(frozen=True)
class Noun:
  """A noun with its gender: m, f or n in German, m or f in the others."""

  english: str
  german: str
  french: str
  spanish: str


NOUNS = (
  Noun("dog", "m Hund", "m chien", "m perro"),
  Noun("cat", "f Katze", "m chat", "m gato"),
  Noun("horse", "n Pferd", "m cheval", "m caballo"),
  Noun("teacher", "m Lehrer", "m professeur", "m profesor"),
  Noun("woman", "f Frau", "f femme", "f mujer"),
  Noun("man", "m Mann", "m homme", "m hombre"),
  Noun("child", "n Kind", "m enfant", "m niño"),
  Noun("king", "m König", "m roi", "m rey"),
  Noun("queen", "f Königin", "f reine", "f reina"),
  Noun("doctor", "m Arzt", "m docteur", "m médico"),
  Noun("bird", "m Vogel", "m oiseau", "m pájaro"),
  Noun("cow", "f Kuh", "f vache", "f vaca"),
  Noun("house", "n Haus", "f maison", "f casa"),
  Noun("table", "m Tisch", "f table", "f mesa"),
  Noun("book", "n Buch", "m livre", "m libro"),
  Noun("flower", "f Blume", "f fleur", "f flor"),
  Noun("car", "n Auto", "f voiture", "m coche"),
  Noun("ball", "m Ball", "m ballon", "m balón"),
  Noun("door", "f Tür", "f porte", "f puerta"),
  Noun("ship", "n Schiff", "m bateau", "m barco"),
  Noun("letter", "m Brief", "f lettre", "f carta"),
  Noun("moon", "m Mond", "f lune", "f luna"),
)
_SUBJECTS = 12  # The first so many can do things.
# English -> the German stem, French and Spanish masculine and feminine.
COLORS = {
  "green": ("grün", ("vert", "verte"), ("verde", "verde")),
  "black": ("schwarz", ("noir", "noire"), ("negro", "negra")),
  "white": ("weiß", ("blanc", "blanche"), ("blanco", "blanca")),
  "red": ("rot", ("rouge", "rouge"), ("rojo", "roja")),
  "blue": ("blau", ("bleu", "bleue"), ("azul", "azul")),
}
TRAITS = {
  "tired": ("müde", ("fatigué", "fatiguée"), ("cansado", "cansada")),
  "famous": ("berühmt", ("célèbre", "célèbre"), ("famoso", "famosa")),
  "sad": ("traurig", ("triste", "triste"), ("triste", "triste")),
  "rich": ("reich", ("riche", "riche"), ("rico", "rica")),
}
_ADJECTIVES = COLORS | TRAITS
VERBS = {
  "sees": ("sieht", "voit", "ve"),
  "finds": ("findet", "trouve", "encuentra"),
  "loves": ("liebt", "aime", "ama"),
  "looks for": ("sucht", "cherche", "busca"),
  "paints": ("malt", "peint", "pinta"),
  "buys": ("kauft", "achète", "compra"),
  "follows": ("verfolgt", "suit", "sigue"),
}
# Adverbs: English and German say "often" where the others may not.
_WHEN = {
  "": ("", "", ""),
  "today": ("heute", "aujourd'hui", "hoy"),
  "here": ("hier", "ici", "aquí"),
  "often": ("oft", "souvent", "a menudo"),
}
_PERSONS = {"teacher", "woman", "man", "child", "king", "queen", "doctor"}


def make(rng: np.random.Generator) -> base.Draft:
  """A sentence to translate."""
  language = int(rng.integers(len(LANGUAGES)))
  subject, thing = base.some(rng, NOUNS, 2)
  while NOUNS.index(subject) >= _SUBJECTS:
    subject, thing = base.some(rng, NOUNS, 2)
  phrases = [_phrase(rng, noun) for noun in (subject, thing)]
  verbs = [v for v in VERBS if v != "buys" or thing.english not in _PERSONS]
  verb = envs_base.pick(rng, verbs)
  when = envs_base.pick(rng, tuple(_WHEN))
  predicate = (when, verb) if when == "often" else (verb,)
  last = "" if when == "often" else when
  english = _joined(
    _english(*phrases[0]), *predicate, _english(*phrases[1]), last
  )
  adverb = _WHEN[when][language]
  early = LANGUAGES[language] == "German" or adverb == "souvent"
  answer = _joined(
    _PHRASES[language](*phrases[0], False),
    VERBS[verb][language],
    adverb if early else "",
    _object(language, phrases[1]),
    "" if early else adverb,
  )
  answer = f"{answer[0].upper()}{answer[1:]}."
  return base.Draft(
    f"Translate to {LANGUAGES[language]}: {english[0].upper()}{english[1:]}.",
    answer,
    {"answer": answer},
  )


def grade(check: dict[str, Any], text: str) -> bool:
  """Whether it is the translation, but for case, blanks and a full stop."""
  return base.normal(text) == base.normal(check["answer"])


def _joined(*parts):
  return " ".join(filter(None, parts))


def _phrase(rng, noun):
  """(noun, whether it is a certain one, an adjective or None)."""
  adjectives = TRAITS if noun.english in _PERSONS else COLORS
  adjective = envs_base.pick(rng, (None, *adjectives))
  return noun, bool(rng.random() < 0.5), adjective


def _english(noun, definite, adjective):
  word = adjective or noun.english
  article = "the" if definite else "an" if word[0] in "aeiou" else "a"
  return _joined(article, adjective, noun.english)


def _object(language, phrase):
  """The object; Spanish marks definite persons with `a`."""
  text = _PHRASES[language](*phrase, True)
  noun, definite, _ = phrase
  if LANGUAGES[language] == "Spanish" and noun.english in _PERSONS and definite:
    return "al " + text[3:] if text.startswith("el ") else f"a {text}"
  return text


def _german(noun, definite, adjective, accusative):
  gender, word = noun.german.split()
  male = gender == "m" and accusative
  if definite:
    article = "den" if male else {"m": "der", "f": "die", "n": "das"}[gender]
    ending = "en" if male else "e"
  else:
    article = "einen" if male else {"m": "ein", "f": "eine", "n": "ein"}[gender]
    ending = "en" if male else {"m": "er", "f": "e", "n": "es"}[gender]
  stem = _ADJECTIVES[adjective][0].removesuffix("e") if adjective else ""
  return _joined(article, stem and stem + ending, word)


def _french(noun, definite, adjective, accusative):
  del accusative
  gender, word = noun.french.split()
  if definite:
    article = "l'" if word[0] in "aeého" else {"m": "le ", "f": "la "}[gender]
  else:
    article = {"m": "un ", "f": "une "}[gender]
  described = _ADJECTIVES[adjective][1][gender == "f"] if adjective else ""
  return _joined(article + word, described)


def _spanish(noun, definite, adjective, accusative):
  del accusative
  gender, word = noun.spanish.split()
  article = {
    (True, "m"): "el", (True, "f"): "la", (False, "m"): "un",
    (False, "f"): "una",
  }[definite, gender]  # fmt: skip
  described = _ADJECTIVES[adjective][2][gender == "f"] if adjective else ""
  return _joined(article, word, described)


_PHRASES = (_german, _french, _spanish)
