"""What a pool of keys and values holds from call to call. Pure numpy.

The pool holds a trie: of the prompts of the last call, and of those before it
as far as there is room, what was asked for last first. A further call is told
what of its own trie stands where, and what is left to compute.
"""

import bisect
from collections.abc import Sequence
import dataclasses

import numpy as np

from pivotrl_jax.data import trees


@dataclasses.dataclass(frozen=True)
class Held:
  """What the pool holds once a part of a call's prompts is in it.

  Attributes:
    trie: each token of it stands at its own place in the pool; the first
      prompts are those of the part, there may be others.
    source: `[T]` the place where the pool has had each token; -1: nowhere.
  """

  trie: trees.Trie
  source: np.ndarray


class PrefixCache:
  """The places of a pool of `size` tokens; see above."""

  def __init__(self, size: int):
    self.size = size
    self.clear()

  def clear(self) -> None:
    """Forgets all."""
    self._trie = trees.build([])
    # Prompts with the places where they leave the trie, the latest first.
    self._known: list[tuple[np.ndarray, int]] = []

  def parts(self, order: trees.Order) -> list[trees.Order]:
    """Prompts in as few parts as fit, of as few tokens as may be."""

    def cost(_, last, tokens):
      del last
      return np.where(tokens <= self.size, self.size + tokens, np.inf)

    return [order.part(run) for run in trees.cut(order, cost)]

  def hold(self, prompts: Sequence[np.ndarray], part: trees.Order) -> Held:
    """Takes up a part of the prompts, for which there is room."""
    asked = [prompts[row] for row in part.rows]
    before = [prompt for prompt, _ in self._known]
    # How many of those before have room, the latest first.
    kept = bisect.bisect_right(
      range(1, len(before) + 1),
      self.size,
      key=lambda n: trees.order([*asked, *before[:n]]).tokens(),
    )
    known = [*asked, *before[:kept]]
    trie = trees.build(known)
    past = trees.leaves(trie)
    source = np.full(len(trie.tokens), -1)
    for new, (_, old) in zip(past[len(asked) :], self._known, strict=False):
      source[trees.above(trie, new)] = trees.above(self._trie, old)
    distinct: dict[bytes, tuple[np.ndarray, int]] = {}
    for prompt, place in zip(known, past, strict=True):
      distinct.setdefault(prompt[:-1].tobytes(), (prompt, int(place)))
    self._trie, self._known = trie, list(distinct.values())
    return Held(trie, source)
