"""Markers, and stand-ins for those that contents merely spell.

A marker is an added token that structures a chat: `<|im_end|>`, `<think>`,
`<tool_call>`. What a tool printed or a user wrote may spell one, and so may
an answer. Before a template sees contents, or the parser sampled text, such
spellings give way to private characters that occur nowhere else; afterwards
they are put back. So only what the template writes, or the policy samples as
one token, is ever a marker.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import re

from pivotrl_jax import errors

THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


@dataclasses.dataclass(frozen=True)
class StandIns:
  """Private characters for some markers.

  Attributes:
    characters: marker -> its character; none where nothing was spelled.
    probe: one more character that is free, to find a place in a text.
  """

  characters: Mapping[str, str]
  probe: str

  def hide(self, text: str, markers: re.Pattern[str]) -> str:
    """`text` with what it spells of `markers` replaced."""
    if not self.characters:
      return text
    return markers.sub(lambda found: self.characters[found[0]], text)

  def show(self, text: str) -> str:
    """The inverse of `hide`, also where a template wrote JSON escapes."""
    for marker, character in self.characters.items():
      text = text.replace(character, marker)
      text = text.replace(_escaped(character), marker)
    return text

  def within(self, text: str) -> bool:
    """Whether some of `text` is hidden."""
    return self.show(text) != text


def pattern(markers: Iterable[str]) -> re.Pattern[str]:
  """Finds the longest of `markers` at a place; nothing where there are none."""
  longest_first = sorted(markers, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def stand_ins(texts: Iterable[str], markers: re.Pattern[str]) -> StandIns:
  """Characters for all of `markers` that `texts` spell.

  Raises:
    InputError: the texts use up every private character.
  """
  text = "\n".join(texts)
  spelled = sorted(set(markers.findall(text)))
  used = set(text)
  free = (
    c for c in map(chr, _PRIVATE) if c not in used and _escaped(c) not in text
  )
  chosen = [c for c, _ in zip(free, range(len(spelled) + 1), strict=False)]
  if len(chosen) <= len(spelled):
    raise errors.InputError(
      "messages: every private character of Unicode occurs; expected a few"
      " that do not"
    )
  return StandIns(dict(zip(spelled, chosen, strict=False)), chosen[-1])


def _escaped(character):
  return json.dumps(character)[1:-1]
