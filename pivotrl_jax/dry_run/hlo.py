"""Reads a compiled program's text: collectives, products, how often each runs.

A loop's body stands there once. What runs more often is counted so: by the
loop's own known trip count, or, for the loop over micro-batches
(`train/step.py`, named there), by how many there are. Loops whose trips depend
on data (blocks of keys, blocks of experts' rows) are left out of products.
"""

import dataclasses
import math
import re

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute",
)  # fmt: skip
MICRO_BATCHES = "micro_batches"
_WIDTHS = {
  "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2,
  "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
  "s64": 8, "u64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(
  r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$"
)
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation"
  r")=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Found:
  """What a device runs in one call of a program.

  Attributes:
    collectives: kind -> bytes of the whole arrays that are gathered,
      scattered or summed.
    products: FLOPs of matrix products outside loops of unknown length.
    unknown: such loops.
  """

  collectives: dict[str, float]
  products: float
  unknown: int


def read(text: str, *, micro_batches: int) -> Found:
  """Counts what a program's text says; see above.

  Args:
    text: of a partitioned, optimized module (`Compiled.as_text()`).
    micro_batches: trips of the loop of that name.
  """
  bodies, entry = _computations(text)
  collectives = dict.fromkeys(COLLECTIVES, 0.0)
  products = 0.0
  unknown = 0

  def walk(name, times, known):
    nonlocal products, unknown
    lines = bodies.get(name, [])
    types = {found: kind for found, kind, _, _ in lines}
    for _, kind, operation, rest in lines:
      plain = operation.removesuffix("-start")
      if plain in COLLECTIVES:
        collectives[plain] += times * max(
          _largest(kind), *(_largest(types.get(x, "")) for x in _operands(rest))
        )
      elif known:
        products += times * _product(kind, operation, rest, types)
      inner, sure = times, known
      if operation == "while":
        trips = _TRIPS.search(rest)
        if trips:
          inner = times * int(trips[1])
        elif f"{MICRO_BATCHES}/while" in rest:
          inner = times * micro_batches
        else:
          sure = False
          unknown += 1
      for called in _called(rest):
        walk(called, inner, sure)

  walk(entry, 1, True)
  return Found(collectives, products, unknown)


def _computations(text):
  bodies, entry, current = {}, "", None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = bodies.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line == "}":
      current = None
    elif current is not None:
      found = _LINE.match(line)
      if found:
        current.append(found.groups())
  return bodies, entry


def _called(rest):
  names = [x for x in _CALLED.findall(rest)]
  for group in _BRANCHES.findall(rest):
    names += [x.strip().lstrip("%") for x in group.split(",")]
  return names


def _operands(rest):
  return re.findall(r"%([\w.\-]+)", rest.partition(")")[0])


def _shapes(kind):
  """(width, sizes) of each array of a type."""
  return [
    (_WIDTHS[name], [int(x) for x in sizes.split(",") if x])
    for name, sizes in re.findall(r"(\w+)\[([\d,]*)\]", kind)
    if name in _WIDTHS
  ]


def _largest(kind):
  return max(
    (width * math.prod(sizes) for width, sizes in _shapes(kind)), default=0
  )


def _product(kind, operation, rest, types):
  """FLOPs of a line that is a matrix product; 0 of another."""
  if operation == "dot":
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
  elif operation == "custom-call" and "__cublas" in rest:
    summed = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', rest)
  else:
    return 0.0
  operands = _operands(rest)
  left = _shapes(types.get(operands[0], "")) if operands else []
  if not left or not summed:
    return 0.0
  sizes = left[0][1]
  axes = re.findall(r"\d+", summed[1])
  depth = math.prod(sizes[int(axis)] for axis in axes)
  return 2.0 * math.prod(_shapes(kind)[0][1]) * depth
