"""Tool-call arguments: decoding that never raises, and what agrees.

Value rules of `single_step` in two settings. "compat" is the production
verifier's own, defects included; "default" mends them: equal values match
first, 5 is 5.0, a bool is no number, and no threshold lets texts agree that
share no word.
"""

from collections import Counter
import json
from typing import Any

UNREADABLE = object()


def decode(text: str) -> Any:
  """JSON, or `UNREADABLE`; Python's dialect, as the originals read it."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return UNREADABLE


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
  stack = [(want, got)]
  while stack:
    e, g = stack.pop()
    if not _same_kind(e, g, setting):
      return "argument_value_type_different"
    if isinstance(e, dict):
      if e.keys() != g.keys():
        return "argument_object_keys_different"
      stack += [(e[key], g[key]) for key in reversed(list(e))]
    elif isinstance(e, list):
      if len(e) != len(g):
        return "argument_list_length_different"
      stack += list(zip(e, g, strict=True))[::-1]
    elif not _same_leaf(e, g, tolerance, words, setting):
      return "argument_value_different"
  return None


def _same_kind(e, g, setting):
  if setting == "compat":
    return isinstance(g, type(e))
  if isinstance(e, bool) or isinstance(g, bool):
    return isinstance(e, bool) and isinstance(g, bool)
  if isinstance(e, (int, float)):
    return isinstance(g, (int, float))
  return isinstance(g, type(e))


def _same_leaf(e, g, tolerance, words, setting):
  if isinstance(e, str):
    return same_text(e, g, words, setting)
  if setting == "default" and (e == g or (e != e and g != g)):
    return True
  if isinstance(e, float) or (setting == "default" and isinstance(g, float)):
    try:
      return abs(g - e) < tolerance
    except OverflowError:
      return False
  return e == g


def same_text(e: str, g: str, words: float, setting: str) -> bool:
  """Strings of two words or more by overlap, shorter ones as they are."""
  if setting == "default" and e == g:
    return True
  left, right = e.strip().lower().split(), g.strip().lower().split()
  if len(left) < 2 or len(right) < 2:
    return e == g
  shared = sum((Counter(left) & Counter(right)).values())
  overlap = shared / (len(left) + len(right))
  # A threshold of 0 lets any two texts agree: at least a word must be shared.
  return overlap >= words and (setting == "compat" or shared > 0)
