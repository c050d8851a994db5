"""What a pool of keys and values holds from call to call. Pure numpy.

A token of a prompt stands in a slot of the pool, whichever was free, for as
long as a prompt that it belongs to is known. Those asked for last stay as far
as there is room. A call is told in which slots the tokens of its own trie
stand, and which of them are still to be computed.
"""

import bisect
from collections.abc import Sequence
import dataclasses

import numpy as np

from pivotrl_jax.data import trees


@dataclasses.dataclass(frozen=True)
class Held:
  """A part of a call's prompts, with its tokens' slots in the pool.

  Attributes:
    trie: of the part.
    slots: `[T]` where in the pool each token of it stands.
    new: `[n]` the places in the trie whose slots are to be filled.
  """

  trie: trees.Trie
  slots: np.ndarray
  new: np.ndarray


class PrefixCache:
  """The slots of a pool of `size` tokens; see above."""

  def __init__(self, size: int):
    self.size = size
    self.clear()

  def clear(self) -> None:
    """Forgets all."""
    # The slots of each known prompt's tokens, the latest last, and the
    # prompts in lexicographic order.
    self._known: dict[bytes, np.ndarray] = {}
    self._sorted: list[bytes] = []
    self._users = np.zeros(self.size, int)  # Known prompts on each slot.
    self._asked: frozenset[bytes] = frozenset()  # Of the last part.

  def grow(self, size: int) -> None:
    """Makes room for `size` tokens."""
    self._users = np.pad(self._users, (0, size - self.size))
    self.size = size

  def parts(self, order: trees.Order) -> list[trees.Order]:
    """Prompts in as few parts as fit, of as few tokens as may be."""

    def cost(_, last, tokens):
      del last
      return np.where(tokens <= self.size, self.size + tokens, np.inf)

    return [order.part(run) for run in trees.cut(order, cost)]

  def hold(self, prompts: Sequence[np.ndarray], part: trees.Order) -> Held:
    """Takes up a part of the prompts, for which there is room."""
    trie = trees.build(prompts, part)
    slots = np.full(len(trie.tokens), -1)
    asked: dict[bytes, np.ndarray] = {}
    replaced = set()
    for row, path in trees.paths(part):
      key = trees.key(prompts[row])
      if not key or key in asked:
        continue
      asked[key] = path
      shared, known = self._nearest(key)
      if shared:
        slots[path[:shared]] = self._known[known][:shared]
        # It goes on where that one ends: to know it alone is enough.
        if shared == len(self._known[known]):
          replaced.add(known)
    new = np.flatnonzero(slots < 0)
    pinned = slots[slots >= 0]
    self._users[pinned] += 1
    for key in replaced:
      self._forget(key)
    self._asked = frozenset()  # Of the part before, which may go.
    slots[new] = self._free(len(new))
    self._asked = frozenset(asked)
    self._users[pinned] -= 1
    for key, path in asked.items():
      self._take_up(key, slots[path])
    return Held(trie, slots, new)

  def extend(self, prompt: np.ndarray, said: np.ndarray) -> np.ndarray | None:
    """Takes up what was sampled after a prompt of the part held last.

    Args:
      prompt: `[P]`.
      said: `[A]` what followed it.

    Returns:
      `[A]` the slots of the prompt's last token and of `said` but for its
      last; None where they are held, or there is no room beside the part.
    """
    before = self._known.get(trees.key(prompt), np.zeros(0, int))
    key = trees.key(np.concatenate([prompt, said]))
    if key in self._known:
      return None
    slots = self._free(len(said))
    if slots is not None:
      self._take_up(key, np.concatenate([before, slots]))
    return slots

  def _free(self, count):
    """So many slots, of prompts that were asked for longest ago; None where
    there are too few beside those of the last part.
    """
    while (free := np.flatnonzero(self._users == 0)).size < count:
      oldest = next(iter(self._known), None)
      if oldest is None or oldest in self._asked:
        return None
      self._forget(oldest)
    return free[:count]

  def _take_up(self, key, slots):
    self._known[key] = slots
    self._users[slots] += 1
    bisect.insort(self._sorted, key)

  def _nearest(self, key):
    """How many tokens a known prompt shares with this one at most, and it."""
    at = bisect.bisect_left(self._sorted, key)
    around = self._sorted[max(0, at - 1) : at + 1]
    return max([(trees.common(k, key), k) for k in around], default=(0, b""))

  def _forget(self, key):
    self._users[self._known.pop(key)] -= 1
    del self._sorted[bisect.bisect_left(self._sorted, key)]
