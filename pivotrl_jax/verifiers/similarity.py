"""How alike two texts are: difflib's ratio, made fast enough for a reward.

`ratio` is 2 M / (len a + len b), M the characters in matching blocks. Both
settings take a floor: who only asks whether a ratio reaches it gets, where it
cannot, an upper bound below it, found in microseconds.
"""

import functools

import cydifflib
from rapidfuzz.distance import LCSseq

# Texts whose differing middles are longer are compared by common subsequence,
# window by window: matching blocks take quadratic time.
_EXACT = 2000
_WINDOW = 10_000


@functools.lru_cache(maxsize=4096)
def ratio(a: str, b: str, *, least: float = 0.0, autojunk: bool = False):
  """The ratio, exact where it is at least `least`.

  Args:
    a, b: texts. With `autojunk` their order counts.
    least: below it any upper bound that is also below it may be returned.
    autojunk: difflib's default, which the original verifiers have: on 200
      characters or more, frequent ones start no match. Otherwise what the
      texts begin and end with in common always counts as matching.
  """
  total = len(a) + len(b)
  if a == b:
    return 1.0
  bound = 2.0 * min(len(a), len(b)) / total
  if bound == 0.0 or bound < least:
    return bound
  start, end = _common(a, b)
  left, right = a[start : len(a) - end], b[start : len(b) - end]
  shared = start + end
  if not left or not right:
    bound = 2.0 * shared / total
    if not autojunk:
      return bound
  elif least > 0.0 or max(len(left), len(right)) > _EXACT:
    bound = 2.0 * (shared + _subsequence(left, right)) / total
  # The windows may miss some of a very long subsequence: no bound, a value.
  windowed = max(len(left), len(right)) > _WINDOW
  if bound < least and not (autojunk and windowed):
    return bound
  if autojunk:
    return cydifflib.SequenceMatcher(None, a, b).ratio()
  if max(len(left), len(right)) > _EXACT:
    return bound
  matcher = cydifflib.SequenceMatcher(None, left, right, autojunk=False)
  matches = sum(block.size for block in matcher.get_matching_blocks())
  return 2.0 * (shared + matches) / total


def _common(a, b):
  """Lengths of the common prefix and of the common suffix after it."""
  most = min(len(a), len(b))
  start = _prefix(a, b, most)
  most -= start
  # Reversed slices: one copy, then comparisons of memory.
  end = _prefix(a[len(a) - most :][::-1], b[len(b) - most :][::-1], most)
  return start, end


def _prefix(a, b, most):
  """Length of the common prefix, by bisection."""
  low, high = 0, most
  while low < high:
    middle = (low + high + 1) // 2
    if a[low:middle] == b[low:middle]:
      low = middle
    else:
      high = middle - 1
  return low


def _subsequence(a, b):
  """Length of the longest common subsequence, in aligned windows."""
  return sum(
    LCSseq.similarity(a[i : i + _WINDOW], b[i : i + _WINDOW])
    for i in range(0, max(len(a), len(b)), _WINDOW)
  )
