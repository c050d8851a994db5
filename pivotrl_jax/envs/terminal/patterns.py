"""Patterns of grep, sed and globs: matched in time linear in the text.

Literals, `.`, `[...]`, `^`, `$`, `\\` and the repetitions `*`, `+`, `?`, with
alternatives but without groups. All states are followed at once, so that no
pattern of an agent can run away, as it could with `re`.
"""

import dataclasses

MOST = 60  # Characters of a pattern.
_GROUPS = "groups are not supported"


@dataclasses.dataclass(frozen=True)
class _Item:
  """One character of a pattern: which it takes, and how often."""

  chars: frozenset[str] | None  # None: any.
  negated: bool = False
  least: int = 1
  endless: bool = False

  def takes(self, char: str) -> bool:
    return self.chars is None or (char in self.chars) != self.negated


@dataclasses.dataclass(frozen=True)
class _Branch:
  items: tuple[_Item, ...]
  start: bool  # Anchored.
  end: bool


@dataclasses.dataclass(frozen=True)
class Pattern:
  """Alternatives, of which one must match."""

  branches: tuple[_Branch, ...]
  fold: bool

  def span(self, line: str, start: int = 0) -> tuple[int, int] | None:
    """The leftmost longest match from `start` on; None without one."""
    text = line.lower() if self.fold else line
    found = [_search(branch, text, start) for branch in self.branches]
    return min(
      (span for span in found if span is not None),
      key=lambda span: (span[0], -span[1]),
      default=None,
    )


def literal(text: str, *, fold: bool = False) -> Pattern:
  """Matches `text` itself."""
  text = text.lower() if fold else text
  items = tuple(_Item(frozenset(c)) for c in text)
  return Pattern((_Branch(items, False, False),), fold)


def compile_pattern(
  text: str, *, extended: bool = False, fold: bool = False
) -> Pattern | str:
  """A basic or extended regular expression, or why it is none."""
  if len(text) > MOST:
    return "pattern too long"
  text = text.lower() if fold else text
  branches, at = [], 0
  while True:
    branch = _branch(text, at, extended)
    if isinstance(branch, str):
      return branch
    found, at = branch
    branches.append(found)
    if at >= len(text):
      return Pattern(tuple(branches), fold)
    at += 1 if extended else 2  # Past the `|` or `\|`.


def glob(pattern: str, name: str) -> bool:
  """Whether a file's name fits `*`, `?` and `[...]`."""
  items, at = [], 0
  while at < len(pattern):
    char = pattern[at]
    if char == "*":
      items.append(_Item(None, least=0, endless=True))
    elif char == "?":
      items.append(_Item(None))
    elif char == "[" and pattern.find("]", at + 2) > 0:
      item, at = _bracket(pattern, at)
      items.append(item)
      continue
    else:
      items.append(_Item(frozenset(char)))
    at += 1
  branch = _Branch(tuple(items), True, True)
  return _search(branch, name, 0) is not None


def _branch(text, at, extended):
  """One alternative from `at` on, and where it ends; or why it is none."""
  items, start = [], text[at : at + 1] == "^"
  at += start
  while at < len(text):
    char, pair = text[at], text[at : at + 2]
    if char == "|" and extended or pair == "\\|" and not extended:
      break
    if char in "()" and extended or pair in ("\\(", "\\)") and not extended:
      return _GROUPS
    if char == "$" and (at + 1 == len(text) or text[at + 1] in "|\\"):
      return _Branch(tuple(items), start, True), at + 1
    if char == "[" and text.find("]", at + 2) > 0:
      item, at = _bracket(text, at)
    elif char == "\\" and len(pair) == 2:
      item, at = _escaped(pair[1]), at + 2
    else:
      item, at = _Item(None if char == "." else frozenset(char)), at + 1
    marks = ("*", "+", "?") if extended else ("*", "\\+", "\\?")
    mark = next((m for m in marks if text.startswith(m, at)), None)
    if mark:
      at += len(mark)
      item = dataclasses.replace(
        item, least=int(mark[-1] == "+"), endless=mark[-1] != "?"
      )
    items.append(item)
  return _Branch(tuple(items), start, False), at


def _escaped(char):
  kinds = {"d": "0123456789", "s": " \t", "w": _letters() + "0123456789_"}
  return _Item(frozenset(kinds.get(char, char)))


def _letters():
  return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _bracket(text, at):
  """`[...]` at `at` as an item, and where it ends."""
  close = text.find("]", at + 2)
  inside = text[at + 1 : close]
  negated = inside[0] in "^!" and len(inside) > 1
  inside = inside[1:] if negated else inside
  chars, i = set(), 0
  while i < len(inside):
    if inside[i + 1 : i + 2] == "-" and i + 2 < len(inside):
      first, last = ord(inside[i]), min(ord(inside[i + 2]), ord(inside[i]) + 96)
      chars |= {chr(c) for c in range(first, last + 1)}
      i += 3
    else:
      chars.add(inside[i])
      i += 1
  return _Item(frozenset(chars), negated), close + 1


def _search(branch, text, start):
  """Leftmost longest match of one alternative: all states side by side."""
  items, best = branch.items, None
  states: dict[int, int] = {}  # State -> where its match began.
  for at in range(start, len(text) + 1):
    if best is None and not (branch.start and at):
      states.setdefault(0, at)
    states = _closed(states, items)
    began = states.pop(len(items), None)
    if began is not None and not (branch.end and at < len(text)):
      best = began, at
    if best is not None:
      states = {s: b for s, b in states.items() if b <= best[0]}
      if not states:
        break
    if at < len(text):
      states = _taken(states, items, text[at])
  return best


def _taken(states, items, char):
  """The states after a character; `~s` has taken its item and may again."""
  found: dict[int, int] = {}
  for s, began in states.items():
    if items[s].takes(char):
      after = ~s if items[s].endless else s + 1
      found[after] = min(began, found.get(after, began))
  return found


def _closed(states, items):
  """`states` with all that they reach without a character, earliest first."""
  found: dict[int, int] = {}
  for s, began in sorted(states.items(), key=lambda pair: pair[1]):
    todo = [s]
    while todo:
      s = todo.pop()
      if s < 0:
        todo += [~s, ~s + 1]
      elif s not in found:
        found[s] = began
        if s < len(items) and not items[s].least:
          todo.append(s + 1)
  return found
