"""The pool's bookkeeping, against a pool that knows what stands in it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from pivotrl_jax.data import trees
from pivotrl_jax.engines import prefix_cache

PROMPTS = st.lists(
  st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6
)


class _Pool:
  """Slots hold the whole path to a token, which stands for its keys."""

  def __init__(self, size):
    self.cache = prefix_cache.PrefixCache(size)
    self.slots = {}

  def call(self, *prompts):
    """Paths computed by a call; all are then where the cache says."""
    prompts = [np.array(p, np.int32) for p in prompts]
    computed = []
    for part in self.cache.parts(trees.order(prompts)):
      held = self.cache.hold(prompts, part)
      assert len(set(held.slots.tolist())) == len(held.slots)
      assert all(0 <= s < self.cache.size for s in held.slots)
      fresh = set(held.new.tolist())
      for row, places in trees.paths(part):
        for n, place in enumerate(places):
          path = tuple(prompts[row][: n + 1].tolist())
          if place in fresh:
            fresh.remove(place)
            self.slots[int(held.slots[place])] = path
            computed.append(path)
          assert self.slots[int(held.slots[place])] == path
      assert not fresh
    return computed


  def extend(self, prompt, said):
    """Whether there was room for what was said, and all that there is stays."""
    slots = self.cache.extend(np.array(prompt), np.array(said))
    if slots is None:
      return False
    whole = [*prompt, *said]
    for n, slot in enumerate(slots, start=len(prompt)):
      self.slots[int(slot)] = tuple(whole[:n])
    return True


@hypothesis.given(
  st.lists(st.tuples(PROMPTS, st.lists(st.integers(0, 2), max_size=3))),
  st.integers(7, 24),
)
def test_every_token_is_where_it_was_computed(calls, size):
  pool = _Pool(size)
  for prompts, said in calls:
    pool.call(*prompts)
    order = trees.order([np.array(p) for p in prompts])
    if said and len(pool.cache.parts(order)) == 1:
      pool.extend(prompts[0], said)


def test_what_was_said_is_held_where_there_is_room():
  pool = _Pool(6)
  pool.call([1, 2, 0])
  assert pool.extend([1, 2, 0], [5, 6])
  # Held: 1 2 0 5; its last token begins the next branch.
  assert pool.call([1, 2, 0, 5, 6]) == []
  assert pool.call([1, 2, 0, 5, 6, 7]) == [(1, 2, 0, 5, 6)]
  # One slot is free, and all others are of the part held last.
  assert not pool.extend([1, 2, 0, 5, 6, 7], [8, 9])
  assert pool.extend([1, 2, 0, 5, 6, 7], [8])
  assert pool.call([1, 2, 0, 5, 6, 7, 8]) == []




def test_the_last_asked_for_stay():
  pool = _Pool(6)
  assert pool.call([1, 2, 3, 0]) == [(1,), (1, 2), (1, 2, 3)]
  assert pool.call([5, 6, 0]) == [(5,), (5, 6)]
  # It goes on from the first; six slots are taken then.
  assert pool.call([1, 2, 3, 4, 0]) == [(1, 2, 3, 4)]
  # The second was asked for before the first, and goes.
  assert pool.call([7, 0]) == [(7,)]
  assert pool.call([1, 2, 3, 4, 0]) == []
  assert pool.call([5, 6, 0]) == [(5,), (5, 6)]


def test_more_room_keeps_what_is_there():
  pool = _Pool(2)
  pool.call([1, 2, 0])
  pool.cache.grow(4)
  assert pool.call([3, 4, 0], [1, 2, 0]) == [(3,), (3, 4)]
  pool.cache.clear()
  assert pool.call([1, 2, 0]) == [(1,), (1, 2)]
