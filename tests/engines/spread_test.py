"""Rows of a call among several engines: each its share, and back in order."""

import numpy as np
import pytest

from pivotrl_jax import errors
from pivotrl_jax.engines import base
from pivotrl_jax.engines import spread

_SAMPLING = base.SamplingParams(max_tokens=2, stop_ids=(0,))


class _Engine:
  """Answers each row with its seed, and notes what it was asked."""

  def __init__(self):
    self.seen, self.weights = [], None
    self.stats = base.Counts()

  def load(self, weights, version):
    self.weights = (weights, version)

  def prepare(self, lengths, sampling, *, prompts, rows, longest):
    self.room = prompts, rows, longest

  def sample(self, prompts, sampling, seeds):
    assert sampling is _SAMPLING and len(prompts) == len(seeds)
    self.seen.append([p.tolist() for p in prompts])
    self.stats = base.Counts(sum(map(len, prompts)), 99, len(seeds), 10)
    return [
      base.Completion(
        np.array([seed], np.int32), np.zeros(1, np.float32), "stop", "v",
        routes=np.full((1, 2, 3), seed, np.int16),
      )
      for seed in seeds
    ]  # fmt: skip


def _prompts():
  """Two prompts and one more, whose rows are not side by side."""
  first, second = (np.array([1, i, 3], np.int32) for i in (7, 8))
  return [second, first, second, first, np.array([9], np.int32)]


def test_rows_come_back_in_order_and_what_begins_alike_stays_together():
  engines = [_Engine(), _Engine()]
  engine = spread.Spread(engines)
  found = engine.sample(_prompts(), _SAMPLING, [10, 11, 12, 13, 14])
  assert [c.ids.tolist() for c in found] == [[10], [11], [12], [13], [14]]
  assert [int(c.routes[0, 1, 2]) for c in found] == [10, 11, 12, 13, 14]
  assert {c.version for c in found} == {"v"}
  # In the order of the trie: [9] shares nothing, then 7, 7 | 8, 8.
  assert engines[0].seen == [[[9], [1, 7, 3], [1, 7, 3]]]
  assert engines[1].seen == [[[1, 8, 3], [1, 8, 3]]]
  # Tries of the shares would count [1] twice: 1 + 7 + 8 of [1, 7] and [1, 8].
  assert engine.stats == base.Counts(13, 3, 5, 20)


def test_more_engines_than_rows():
  engines = [_Engine() for _ in range(3)]
  engine = spread.Spread(engines)
  (found,) = engine.sample([np.array([1, 2])], _SAMPLING, [5])
  assert found.ids.tolist() == [5]
  assert [len(e.seen) for e in engines] == [1, 0, 0]
  assert engine.stats.computed_tokens == 10


def test_engines_are_readied_for_their_shares():
  engines = [_Engine() for _ in range(4)]
  spread.Spread(engines).prepare(
    [5], _SAMPLING, prompts=10, rows=8, longest=7
  )
  assert {e.room for e in engines} == {(4, 8, 7)}  # ceil(10 / 4), and one cut.


def test_one_that_fails_fails_the_call():
  def dead(*_):
    raise errors.EngineError("server a is gone")

  engines = [_Engine(), _Engine()]
  engines[1].sample = dead
  with pytest.raises(errors.EngineError, match="server a is gone"):
    spread.Spread(engines).sample(_prompts(), _SAMPLING, range(5))
