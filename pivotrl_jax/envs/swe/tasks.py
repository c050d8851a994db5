"""What the mini SWE world's tasks are made of: functions, bugs, words.

A family is a kind of function: its docstring, its lines, the line that gets
the bug, and wrong versions of that line. `{name}` fields are filled with
drawn words and numbers. The docstring always says what is right, so the
mend can be worked out from the file and the issue alone.
"""

import ast
import builtins
from collections.abc import Callable
import dataclasses

import numpy as np

from pivotrl_jax.envs import sandbox

NOUNS = (
    "age", "area", "band", "bill", "bird", "boat", "book", "box", "card",
    "cart", "cat", "city", "code", "coin", "cost", "crop", "cup", "deck",
    "desk", "dish", "door", "farm", "fee", "fish", "game", "gift", "goal",
    "hat", "home", "hour", "item", "job", "key", "lake", "lamp", "leaf",
    "line", "list", "loan", "map", "mark", "meal", "menu", "mile", "name",
    "note", "page", "park", "path", "plan", "play", "pool", "post", "rate",
    "road", "roof", "room", "rule", "sale", "seat", "ship", "shop", "size",
    "song", "star", "step", "task", "team", "tree", "trip", "unit", "user",
    "week", "wind", "wood", "word", "work", "year", "yard", "zone",
)  # fmt: skip
VERBS = (
    "get", "make", "find", "calc", "give", "read", "take", "show", "best",
    "last", "next", "new", "old", "one", "pick", "full", "net", "top",
)  # fmt: skip
NEW_VERBS = ("keep", "load", "main", "open", "sort", "used")  # Validation's.


@dataclasses.dataclass(frozen=True)
class Family:
  """One kind of function.

  Attributes:
    args: kinds of its arguments: "int", "ints", "str" or "strs".
    doc: docstring.
    lines: the body.
    at: index of the line that gets the bug.
    wrong: wrong versions of that line.
  """

  args: tuple[str, ...]
  doc: str
  lines: tuple[str, ...]
  at: int
  wrong: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Bug:
  """A drawn task, before it has an id; fields as in `environment.Task`."""

  files: tuple[tuple[str, str], ...]
  fixed: tuple[tuple[str, str], ...]
  issue: str
  function: str
  path: str
  wrong: tuple[str, ...]
  checks: tuple[tuple[str, str], ...]


def _one(args, doc, line, *wrong):
  return Family(args, doc, (line,), 0, wrong)


_I, _II, _L, _LI, _S = (
    ("int",), ("int", "int"), ("ints",), ("ints", "int"), ("str",),
)  # fmt: skip
FAMILIES = (
    _one(_II, "{a} plus {b}.", "return {a} + {b}", "return {a} - {b}",
         "return {a} * {b}", "return {a} + {a}"),
    _one(_II, "{a} minus {b}.", "return {a} - {b}", "return {a} + {b}",
         "return {b} - {a}"),
    _one(_II, "{a} times {b}.", "return {a} * {b}", "return {a} + {b}",
         "return {a} * {a}"),
    _one(_I, "{a} times {k}.", "return {a} * {k}", "return {a} * {j}",
         "return {a} + {k}"),
    _one(_I, "{a} plus {k}.", "return {a} + {k}", "return {a} - {k}",
         "return {a} + {j}"),
    _one(_II, "The larger of {a} and {b}.", "return max({a}, {b})",
         "return min({a}, {b})", "return max({a}, {a})"),
    _one(_II, "The smaller of {a} and {b}.", "return min({a}, {b})",
         "return max({a}, {b})", "return min({b}, {b})"),
    _one(_I, "True if {a} is even.", "return {a} % 2 == 0",
         "return {a} % 2 == 1", "return {a} % 2 != 0"),
    _one(_I, "True if {a} is odd.", "return {a} % 2 == 1",
         "return {a} % 2 == 0", "return {a} % 2 != 1"),
    _one(_I, "True if {a} is over {k}.", "return {a} > {k}",
         "return {a} < {k}", "return {a} > {j}"),
    _one(_I, "True if {a} is under {k}.", "return {a} < {k}",
         "return {a} > {k}", "return {a} < {j}"),
    _one(_II, "True if {a} equals {b}.", "return {a} == {b}",
         "return {a} != {b}", "return {a} == {a}"),
    _one(_L, "The last of {a}.", "return {a}[-1]", "return {a}[0]",
         "return {a}[1]"),
    _one(_L, "The first of {a}.", "return {a}[0]", "return {a}[-1]",
         "return {a}[1]"),
    _one(_L, "The sum of {a}.", "return sum({a})", "return len({a})",
         "return max({a})"),
    _one(_L, "The largest of {a}.", "return max({a})", "return min({a})",
         "return sum({a})"),
    _one(_L, "How many {a}.", "return len({a})", "return len({a}) - 1",
         "return sum({a})"),
    _one(_LI, "Those of {a} over {b}.",
         "return [x for x in {a} if x > {b}]",
         "return [x for x in {a} if x < {b}]",
         "return [x for x in {a} if x == {b}]"),
    _one(_LI, "Each of {a} times {b}.", "return [x * {b} for x in {a}]",
         "return [x + {b} for x in {a}]", "return [x * 2 for x in {a}]"),
    _one(_LI, "How many of {a} equal {b}.", "return {a}.count({b})",
         "return {a}.count(1)", "return {a}.index({a}[0])"),
    _one(_L, "{a} from large to small.", "return sorted({a}, reverse=True)",
         "return sorted({a})", "return sorted({a}, reverse=False)"),
    _one(_S, "{a} in capitals.", "return {a}.upper()", "return {a}.lower()",
         "return {a}.title()"),
    _one(_S, "{a} backwards.", "return {a}[::-1]", "return {a}[::1]",
         "return {a}[1:]"),
    _one(_S, "{a} with {k} copies.", "return {a} * {k}",
         "return {a} * {j}", "return {a} + {a}"),
    Family(_L, "The sum of {a}.",
           ("{t} = 0", "for x in {a}:", "  {t} += x", "return {t}"), 2,
           ("  {t} -= x", "  {t} = x", "  {t} += 1")),
    Family(_L, "The product of {a}.",
           ("{t} = 1", "for x in {a}:", "  {t} *= x", "return {t}"), 0,
           ("{t} = 0", "{t} = {k}")),
    Family(_LI, "How many of {a} are over {b}.",
           ("{t} = 0", "for x in {a}:", "  if x > {b}:", "    {t} += 1",
            "return {t}"), 2,
           ("  if x < {b}:", "  if x == {b}:", "  if x != {b}:")),
    Family(_II, "{a} but at most {b}.",
           ("if {a} > {b}:", "  return {b}", "return {a}"), 0,
           ("if {a} < {b}:", "if {a} == {b}:")),
    Family(_II, "{a} but at least {b}.",
           ("if {a} < {b}:", "  return {b}", "return {a}"), 1,
           ("  return {a}", "  return 0", "  return {b} + 1")),
    Family(_I, "{a} plus {k}, then doubled.",
           ("{t} = {a} + {k}", "return {t} * 2"), 0,
           ("{t} = {a} - {k}", "{t} = {a} * {k}", "{t} = {a} + {j}")),
)  # fmt: skip

_REFERENCE = {name: getattr(builtins, name) for name in sandbox.BUILTINS}


def make_bug(
  rng: np.random.Generator,
  *,
  wanted: Callable[[str], bool],
  verbs: tuple[str, ...],
) -> Bug | None:
  """Draws two files of one function each and breaks one of them.

  Args:
    rng: all draws come from here.
    wanted: whether a function of this name may be the one at fault.
    verbs: what the functions' names begin with.

  Returns:
    The bug, or None where the draw was no good: an unwanted name, or a wrong
    line that the drawn tests cannot tell from the right one.
  """
  names = _names(rng, verbs)
  if not wanted(names[0]):
    return None
  nouns = [str(n) for n in rng.choice(NOUNS, 2, replace=False)]
  target, other = (_function(rng, name) for name in names)
  family, fields = target.family, target.fields
  wrong = [line.format(**fields) for line in family.wrong]
  right = family.lines[family.at].format(**fields)
  wrong = [line for line in dict.fromkeys(wrong) if line != right]
  broken = str(rng.choice(wrong))
  checks = _checks(rng, target, broken)
  if checks is None:
    return None
  path = f"{nouns[0]}.py"

  def files(line):
    pair = (path, target.source(line)), (f"{nouns[1]}.py", other.source())
    return tuple(sorted(pair))

  call, want, got = checks[0]
  return Bug(
    files=files(broken),
    fixed=files(None),
    issue=_issue(rng, names[0], call, want, got),
    function=names[0],
    path=path,
    wrong=tuple(line for line in wrong if line != broken),
    checks=tuple((call, want) for call, want, _ in checks),
  )


def more_checks(
  rng: np.random.Generator, source: str, call: str
) -> tuple[tuple[str, str], ...]:
  """Further (call, right repr) of a function: what an agent has not seen.

  Args:
    rng: all draws come from here.
    source: the right file.
    call: of the function, as an example.

  Returns:
    Eight, and what gives another value yet, up to sixteen.
  """
  name, _, arguments = call.partition("(")
  example = ast.literal_eval(f"({arguments[:-1]},)")
  kinds = {int: "int", list: "ints", str: "str"}
  right = _compile(source, name)
  found: dict[str, str] = {}
  for _ in range(60):
    args = [_argument(rng, kinds[type(a)]) for a in example]
    want = repr(right(*args))
    if len(found) < 8 or len(found) < 16 and want not in found.values():
      found[f"{name}({', '.join(repr(a) for a in args)})"] = want
  return tuple(found.items())


@dataclasses.dataclass(frozen=True)
class _Function:
  name: str
  family: Family
  fields: dict[str, str]

  def source(self, broken: str | None = None) -> str:
    """The function's text, with `broken` for the line at fault."""
    family, fields = self.family, self.fields
    lines = [line.format(**fields) for line in family.lines]
    if broken is not None:
      lines[family.at] = broken
    args = ", ".join(fields[k] for k in "ab"[: len(family.args)])
    return "".join(
      f"{line}\n"
      for line in (
        f"def {self.name}({args}):",
        f'  """{family.doc.format(**fields)}"""',
        *(f"  {line}" for line in lines),
      )
    )


def _names(rng, verbs):
  """Two different function names."""
  while True:
    names = [f"{rng.choice(verbs)}_{rng.choice(NOUNS)}" for _ in range(2)]
    if len(set(names)) == 2:
      return names


def _function(rng, name):
  family = FAMILIES[rng.integers(len(FAMILIES))]
  a, b, t = (str(n) for n in rng.choice(NOUNS, 3, replace=False))
  k = int(rng.integers(2, 10))
  j = k + 1 if rng.random() < 0.5 else k - 1
  return _Function(
    name, family, {"a": a, "b": b, "t": t, "k": str(k), "j": str(j)}
  )


def _checks(rng, target, broken):
  """Three (call, right repr, wrong repr), the first telling; else None."""
  right, wrong = (
    _compile(target.source(), target.name),
    _compile(target.source(broken), target.name),
  )
  found = []
  for _ in range(20):
    args = [_argument(rng, kind) for kind in target.family.args]
    call = f"{target.name}({', '.join(repr(a) for a in args)})"
    want, got = repr(right(*args)), repr(wrong(*args))
    if call not in [c for c, _, _ in found]:
      found.append((call, want, got))
    found.sort(key=lambda c: c[1] == c[2])
    if len(found) >= 3 and found[0][1] != found[0][2]:
      return found[:3]
  return None


def _compile(source, name):
  """A function of ours, from our own template, to work out its answers."""
  scope = {"__builtins__": _REFERENCE}
  exec(source, scope)  # pylint: disable=exec-used
  return scope[name]


def _argument(rng, kind):
  if kind == "int":
    return int(rng.integers(0, 13))
  if kind == "ints":
    return [int(x) for x in rng.integers(0, 10, rng.integers(3, 5))]
  return str(rng.choice(NOUNS))


def _issue(rng, name, call, want, got):
  forms = (
    f"{call} gives {got}, I want {want}.",
    f"{name} is wrong: {call} should be {want}, not {got}.",
    f"Please fix {name}. {call} returns {got} instead of {want}.",
    f"Bug: expected {want} from {call} but got {got}.",
  )
  return forms[rng.integers(len(forms))]
