"""Token prefixes to a prefix trie and its parts. Pure numpy.

The trie holds each prompt *without its last token*, which begins a branch:
it is read for its keys and values only, and prompts that differ in no other
token share all. Prompts stand in lexicographic order; each adds to the one
before it what it does not share, token for token: strings that look alike but
tokenize apart never share. Laid out so, which is depth first, a token at
place p sees the key at place j exactly if `j <= p < ends[j]`.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

_TOKEN = np.dtype(np.uint32)  # Of a key, for equality.


@dataclasses.dataclass(frozen=True)
class Order:
  """Prompts in lexicographic order, a prefix before what extends it.

  Attributes:
    rows: `[n]` which prompt comes when.
    lengths: `[n]` tokens of each in the trie, in this order.
    shared: `[n]` how many of its first tokens the one before has too.
  """

  rows: np.ndarray
  lengths: np.ndarray
  shared: np.ndarray

  def part(self, run: slice) -> "Order":
    """The prompts of a run, the first of which shares nothing."""
    shared = self.shared[run].copy()
    shared[:1] = 0
    return Order(self.rows[run], self.lengths[run], shared)

  def tokens(self) -> int:
    """Tokens of the trie."""
    return int((self.lengths - self.shared).sum())


@dataclasses.dataclass(frozen=True)
class Trie:
  """Every shared token once, depth first; any number of roots.

  Attributes:
    tokens: `[T]` int32 token ids.
    ends: `[T]` int32 the place behind all that follows each token.
    depths: `[T]` int32 how many tokens stand above each: its position.
    rows: `[n]` which prompts these are, in the order of the layout.
    past: `[n]` int32 the place of each one's last token but one, where its
      branches leave the trie; -1 for a prompt of one token.
  """

  tokens: np.ndarray
  ends: np.ndarray
  depths: np.ndarray
  rows: np.ndarray
  past: np.ndarray


def order(prompts: Sequence[np.ndarray]) -> Order:
  """Sorts int prompts `[T_i]`.

  Raises:
    ValueError: a prompt is empty.
  """
  # Rows of a group often are one array: looked at once.
  keys = {id(p): key(p) for p in prompts}
  for row, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(f"prompt {row} is empty; expected >= 1 token")
  rows = sorted(range(len(prompts)), key=lambda i: (keys[id(prompts[i])], i))
  lengths = np.array([len(prompts[i]) - 1 for i in rows], int)
  shared = np.zeros(len(rows), int)
  for n in range(1, len(rows)):
    shared[n] = common(*(keys[id(prompts[i])] for i in rows[n - 1 : n + 1]))
  return Order(np.array(rows, int), lengths, shared)


def key(prompt: np.ndarray) -> bytes:
  """A prompt without its last token; bytes in the order of the prompts."""
  return np.asarray(prompt[:-1], ">u4").tobytes()


def common(left: bytes, right: bytes) -> int:
  """How many first tokens two keys share."""
  size = min(len(left), len(right)) // _TOKEN.itemsize
  if left is right:
    return size
  left, right = (np.frombuffer(x, _TOKEN, size) for x in (left, right))
  differ = np.flatnonzero(left != right)
  return int(differ[0]) if len(differ) else size


def build(prompts: Sequence[np.ndarray], given: Order | None = None) -> Trie:
  """The trie of prompts, or of those in an `Order` of theirs."""
  given = order(prompts) if given is None else given
  size = given.tokens()
  tokens = np.zeros(size, np.int32)
  ends = np.full(size, size, np.int32)
  depths = np.zeros(size, np.int32)
  past = np.full(len(given.rows), -1, np.int32)
  path = np.zeros(given.lengths.max(initial=0), np.int32)
  place = before = 0
  for n, row in enumerate(given.rows):
    length, shared = given.lengths[n], given.shared[n]
    # What the row before has beyond the shared tokens ends here.
    ends[path[shared:before]] = place
    new = slice(place, place + length - shared)
    tokens[new] = prompts[row][shared:length]
    depths[new] = np.arange(shared, length)
    path[shared:length] = np.arange(new.start, new.stop)
    if length:
      past[n] = path[length - 1]
    place, before = new.stop, length
  return Trie(tokens, ends, depths, given.rows, past)


def paths(given: Order) -> Iterator[tuple[int, np.ndarray]]:
  """Each prompt, in order, and the places `[T_i]` of its tokens in the trie."""
  path, place = np.zeros(0, int), 0
  for row, length, shared in zip(
    given.rows, given.lengths, given.shared, strict=True
  ):
    end = place + length - shared
    path = np.append(path[:shared], np.arange(place, end))
    place = end
    yield row, path


def above(trie: Trie, places: np.ndarray) -> np.ndarray:
  """The places on the paths to any of `places`, ascending."""
  asked = np.unique(places)
  asked = asked[asked >= 0]
  if not len(asked):
    return np.zeros(0, int)
  upto = np.arange(asked[-1] + 1)
  # A token is above one of them if the first that is not before it is before
  # its end.
  return np.flatnonzero(asked[np.searchsorted(asked, upto)] < trie.ends[upto])


def cut(
  given: Order, cost: Callable[[np.ndarray, int, np.ndarray], np.ndarray]
) -> list[slice]:
  """Cuts prompts, in their order, into runs whose costs sum to the least.

  A run's first prompt pays for all of its tokens: a cut costs what the
  prompts on its two sides share, once more.

  Args:
    given: the prompts.
    cost: (firsts `[m]`, last, tokens `[m]`) -> `[m]` what the runs
      `first..last` cost that have so many tokens; inf where one is too much.
      A run of one prompt must not be.

  Returns:
    The runs.
  """
  added = np.cumsum(given.lengths - given.shared)
  # Tokens of first..last are `added[last] + base[first]`.
  base = given.lengths - added
  count = len(given.rows)
  best, came = np.zeros(count + 1), np.zeros(count, int)
  for last in range(count):
    firsts = np.arange(last + 1)
    sums = best[: last + 1] + cost(firsts, last, base[firsts] + added[last])
    came[last] = last - sums[::-1].argmin()  # The shorter of equal runs.
    best[last + 1] = sums[came[last]]
  runs, end = [], count
  while end:
    runs.append(slice(came[end - 1], end))
    end = runs[-1].start
  return runs[::-1]


def bucket(size: int, least: int = 16) -> int:
  """The smallest of least x (1, 1.5, 2, 3, 4, 6, ...) that holds `size`."""
  bound = least
  while bound < size:
    if bound * 3 // 2 >= size and bound % 2 == 0:
      return bound * 3 // 2
    bound *= 2
  return bound
