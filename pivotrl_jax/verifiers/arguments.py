"""Tool-call arguments: decoding that never raises, and what agrees.

Value rules of `single_step` in two settings. "compat" is the production
verifier's own, defects included; "default" mends them: equal values match
first, 5 is 5.0, a bool is no number, dates and codes agree exactly, commands
name the same paths, and texts that share no word never agree.
"""

from collections import Counter
import json
import math
import re
from typing import Any

UNREADABLE = object()
_COMMAND_KEYS = ("command", "cmd")
_PATH = re.compile(r"[\w.~\-]*/[\w./~\-]+|[\w\-]+\.[a-z]\w{0,4}\b")
_DATE = re.compile(r"[\d\s:.,/\-]+")
_WORD = re.compile(r"[\w$'-]+")
_NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")


class _Constant(float):
  """NaN or Infinity by name: a number too large for a float is neither."""


_DECODER = json.JSONDecoder(parse_constant=_Constant)


def decode(text: str) -> Any:
  """JSON, or `UNREADABLE`; Python's dialect, as the originals read it."""
  try:
    return _DECODER.decode(text)
  except (ValueError, RecursionError):
    return UNREADABLE


def of_call(text: str) -> Any:
  """`decode` of a call's arguments; none at all and null are an empty object."""
  value = decode(text) if text.strip() else {}
  return {} if value is None else value


def too_large(text: str) -> bool:
  """Whether `text` may be JSON, but of sizes that Python will not read."""
  try:
    _DECODER.decode(text)
  except json.JSONDecodeError:
    return False
  except (ValueError, RecursionError):
    return True
  return False


def mismatch(
  want: Any, got: Any, *, tolerance: float, words: float, setting: str
) -> str | None:
  """Why `got` is not `want`; None where they agree.

  Args:
    want: the demonstration's value.
    got: the model's.
    tolerance: of floats, absolute.
    words: least overlap of strings of two words or more.
    setting: "compat" or "default".
  """
  stack = [(want, got, "")]
  while stack:
    e, g, name = stack.pop()
    if not _same_kind(e, g, setting):
      return "argument_value_type_different"
    if isinstance(e, dict):
      if e.keys() != g.keys():
        return "argument_object_keys_different"
      stack += [(e[key], g[key], key) for key in reversed(list(e))]
    elif isinstance(e, list):
      if len(e) != len(g):
        return "argument_list_length_different"
      stack += [(x, y, name) for x, y in zip(e, g, strict=True)][::-1]
    elif not _same_leaf(e, g, name, tolerance, words, setting):
      return "argument_value_different"
  return None


def same_message(want: str, got: str, words: float) -> bool:
  """Whether two messages tell the same numbers, in words that overlap.

  Args:
    want, got: the messages.
    words: least overlap: shared words over those of both, up to 0.5.
  """
  if sorted(_NUMBER.findall(want)) != sorted(_NUMBER.findall(got)):
    return False
  left, right = (_WORD.findall(text.lower()) for text in (want, got))
  return _shared(left, right) >= words * (len(left) + len(right))


def _same_kind(e, g, setting):
  if setting == "compat":
    return isinstance(g, float if isinstance(e, float) else type(e))
  if isinstance(e, bool) or isinstance(g, bool):
    return isinstance(e, bool) and isinstance(g, bool)
  if isinstance(e, (int, float)):
    return isinstance(g, (int, float))
  return isinstance(g, type(e))


def _same_leaf(e, g, name, tolerance, words, setting):
  if isinstance(e, str):
    if setting == "compat":
      return _same_text_compat(e, g, words)
    return _same_text(e, g, words, command=name in _COMMAND_KEYS)
  if setting == "compat":
    return abs(g - e) < tolerance if isinstance(e, float) else e == g
  if not isinstance(e, float) and not isinstance(g, float):
    return e == g
  return _same_number(e, g, tolerance)


def _same_number(e, g, tolerance):
  """Floats: equal, or within the tolerance; the endless ones by name."""
  try:
    if math.isfinite(e) and math.isfinite(g):
      return e == g or abs(g - e) < tolerance
  except OverflowError:  # An int that no float holds.
    return e == g
  return type(e) is type(g) and repr(e) == repr(g)


def _same_text_compat(e, g, words):
  left, right = _words(e), _words(g)
  if len(left) < 2 or len(right) < 2:
    return e == g
  return _shared(left, right) / (len(left) + len(right)) >= words


def _same_text(e, g, words, command):
  if e == g:
    return True
  left, right = _words(e), _words(g)
  if len(left) < 2 or len(right) < 2:
    return left == right and len(e) == len(g) == 1
  if _DATE.fullmatch(e) and _DATE.fullmatch(g):
    return left == right  # Times, phone numbers: each digit counts.
  if command and set(_PATH.findall(e)) != set(_PATH.findall(g)):
    return False
  shared = _shared(left, right)
  # A threshold of 0 lets any two texts agree: at least a word must be shared.
  return shared > 0 and shared / (len(left) + len(right)) >= words


def _words(text):
  return text.strip().lower().split()


def _shared(left, right):
  return sum((Counter(left) & Counter(right)).values())
