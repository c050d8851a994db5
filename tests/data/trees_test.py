"""Prefixes to tries: token for token, and nothing twice."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from pivotrl_jax.data import batches
from pivotrl_jax.data import trees

PROMPTS = st.lists(
  st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12
)


def _arrays(prompts):
  return [np.array(p, np.int32) for p in prompts]


def test_golden():
  prompts = _arrays(([1, 2, 3, 9], [1, 2, 8], [1, 2, 3, 7], [1, 4, 6], [2]))
  # Without last tokens: 1 2 3, 1 2, 1 2 3, 1 4 and nothing. In order, with
  # what each shares with the one before: [] | 1 2 | (1 2) 3 | (1 2 3) |
  # (1) 4. Depth first: 1 2 3 4; the 2 and the 3 end before the 4 at place 3.
  order = trees.order(prompts)
  assert order.rows.tolist() == [4, 1, 0, 2, 3]
  assert order.lengths.tolist() == [0, 2, 3, 3, 2]
  assert order.shared.tolist() == [0, 0, 2, 3, 1]
  assert order.tokens() == 4
  trie = trees.build(prompts)
  assert trie.tokens.tolist() == [1, 2, 3, 4]
  assert trie.ends.tolist() == [4, 3, 3, 4]
  assert trie.depths.tolist() == [0, 1, 2, 1]
  assert trie.past.tolist() == [-1, 1, 2, 2, 3]
  paths = {row: path.tolist() for row, path in trees.paths(order)}
  assert paths == {4: [], 1: [0, 1], 0: [0, 1, 2], 2: [0, 1, 2], 3: [0, 3]}
  assert trees.above(trie, np.array([3, -1])).tolist() == [0, 3]


@hypothesis.given(PROMPTS)
def test_every_prompt_is_a_path(prompts):
  trie = trees.build(_arrays(prompts))
  paths = dict(trees.paths(trees.order(_arrays(prompts))))
  nodes = {tuple(p[:n]) for p in prompts for n in range(1, len(p))}
  assert len(trie.tokens) == len(nodes)
  for row, past in zip(trie.rows, trie.past, strict=True):
    seen = [j for j in range(len(trie.tokens)) if j <= past < trie.ends[j]]
    assert trie.tokens[seen].tolist() == prompts[row][:-1]
    assert trie.depths[seen].tolist() == list(range(len(seen)))
    assert trees.above(trie, np.array([past])).tolist() == seen
    assert paths[row].tolist() == seen


@hypothesis.given(PROMPTS, st.lists(st.integers(0, 11), max_size=4))
def test_above_is_the_union_of_paths(prompts, rows):
  trie = trees.build(_arrays(prompts))
  places = trie.past[[r for r in rows if r < len(prompts)]]
  want = {int(j) for p in places for j in trees.above(trie, np.array([p]))}
  assert trees.above(trie, places).tolist() == sorted(want)


def test_token_bytes_do_not_mix():
  # 256 is bytes 0,0,1,0: as raw bytes, [0] would seem to begin [256].
  assert trees.order(_arrays([[256, 1], [0, 1]])).tokens() == 2


def test_empty_prompt_is_refused():
  with pytest.raises(ValueError, match="prompt 1 is empty"):
    trees.order(_arrays([[1], []]))


@hypothesis.given(PROMPTS, st.integers(5, 9))
def test_a_cut_costs_the_least(prompts, room):
  order = trees.order(_arrays(prompts))

  def cost(firsts, last, tokens):
    del firsts, last
    return np.where(tokens <= room, tokens + 0.1, np.inf)

  def total(runs):
    return sum(
      cost(None, None, np.array(order.part(run).tokens())) for run in runs
    )

  runs = trees.cut(order, cost)
  assert [i for r in runs for i in range(r.start, r.stop)] == list(
    range(len(prompts))
  )
  # No other cut in at most two places is cheaper.
  count = len(prompts)
  for a in range(count + 1):
    for b in range(a, count + 1):
      edges = sorted({0, a, b, count})
      other = [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]
      assert total(runs) <= total(other) + 1e-9


def _rows(lengths, actions):
  return batches.Rows(
    prompts=[np.full(n, i) for i, n in enumerate(lengths)],
    actions=[np.arange(n) for n in actions],
    weights=[np.ones(n) for n in actions],
    advantages=np.arange(float(len(lengths))),
    sampler_log_probs=[np.zeros(n) for n in actions],
  )


def test_tries_fill_lines():
  shape = batches.Shape(
      micro_batches=2, least=1, lines=1, trie=64, branch=8, branches=4, width=4
  )  # fmt: skip
  batch, places = batches.pack(
    _rows((41, 6, 34, 21, 8), (3, 1, 4, 1, 1)), shape
  )
  # 105 tokens of tries need two lines of 64. A branch takes 8 / 4 = 2 places
  # at least. By length: 40 | 33; 20 on the emptier line, whose 33 + 20 of 64
  # and 4 + 2 of 8 are less than 60 of 64; 7 and 5 on the other: 52 of 64.
  assert places.tolist() == [0, 2, 4, 5, 1]
  assert batch.past[:, 0].tolist() == [[39, 46, 51, -1], [32, 52, -1, -1]]
  assert batch.first[:, 0].tolist() == [[0, 4, 1, 0], [2, 3, 0, 0]]
  assert batch.ends[0, 0].tolist() == [40] * 40 + [47] * 7 + [52] * 5 + [0] * 12
  assert batch.depths[0, 0, [0, 39, 40, 46, 47]].tolist() == [0, 39, 0, 6, 0]
  # Action n, token a at n * 4 + a; 16 where there is none.
  assert batch.places[:, 0].tolist() == [
    [0, 1, 2, 4, 8, 16, 16, 16],
    [0, 1, 2, 3, 4, 16, 16, 16],
  ]
  # Of 2 * (64 + 8) tokens 105 + 10 are used.
  assert batches.padding_share(batch) == pytest.approx(1 - 115 / 144)


def test_a_line_is_cut_where_little_is_shared():
  # Two prompts share 10 tokens, two others 30, both pairs nothing: in lines
  # of 60 the pairs stay together, 10 + 15 + 15 and 30 + 10 + 10.
  def prompt(first, shared, own, length):
    return np.concatenate([np.full(shared, first), np.full(length, own)])

  rows = _rows((1,) * 4, (1,) * 4)
  rows = dataclasses.replace(
    rows,
    prompts=[
      prompt(1, 10, 7, 16), prompt(2, 30, 7, 11), prompt(1, 10, 8, 16),
      prompt(2, 30, 8, 11),
    ],
  )  # fmt: skip
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trie=60, branch=8, branches=4, width=1
  )  # fmt: skip
  batch, places = batches.pack(rows, shape)
  assert (batch.ends > 0).sum((1, 2)).tolist() == [50, 40]
  assert (places // 4).tolist() == [1, 0, 1, 0]


def test_more_micro_batches_where_they_do_not_suffice():
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trie=64, branch=8, branches=4, width=4
  )  # fmt: skip
  batch, places = batches.pack(_rows((40, 40, 40), (1, 1, 1)), shape)
  assert batch.tries.shape == (4, 1, 64)
  assert places.tolist() == [0, 4, 8]


def test_what_has_no_room_is_refused():
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trie=64, branch=8, branches=4, width=4
  )  # fmt: skip
  with pytest.raises(ValueError, match="a prompt of 66 .* at most 65 and 4"):
    batches.pack(_rows((66,), (1,)), shape)


def test_plan_leaves_little_padding():
  rng = np.random.default_rng(0)

  def step():
    prompts = [np.full(rng.integers(200, 400), i) for i in range(16)]
    return prompts * 8, rng.integers(10, 96, 128)

  shape = batches.plan(
    [step() for _ in range(8)], longest=400, width=96, batch_tokens=4096
  )
  for _ in range(8):
    prompts, lengths = step()
    rows = _rows(lengths, lengths)
    rows = dataclasses.replace(rows, prompts=prompts)
    batch, _ = batches.pack(rows, shape)
    assert len(batch.tries) == shape.micro_batches
    assert batches.padding_share(batch) < 0.25


def test_bucket():
  assert [trees.bucket(n) for n in (1, 16, 17, 24, 25, 33, 49)] == [
      16, 16, 24, 24, 32, 48, 64,
  ]  # fmt: skip


@hypothesis.settings(max_examples=50)
@hypothesis.given(PROMPTS, st.integers(1, 3), st.integers(1, 3))
def test_pack_places_every_row(prompts, micro_batches, multiple):
  rng = np.random.default_rng(0)
  actions = [rng.integers(0, 9, rng.integers(1, 4)) for _ in prompts]
  batch, places = batches.pack(
    batches.Rows(
      prompts=_arrays(prompts),
      actions=actions,
      weights=[np.ones(len(a)) for a in actions],
      advantages=np.arange(len(prompts)),
      sampler_log_probs=[np.full(len(a), -1.0) for a in actions],
    ),
    micro_batches=micro_batches,
    multiple_of=multiple,
  )
  assert len(set(places.tolist())) == len(prompts)
  width = batch.actions.shape[-1]
  branches = batch.past.shape[-1]
  computed = np.zeros(batch.actions.size + 1, int)
  for line, at in enumerate(batch.places.reshape(-1, batch.places.shape[-1])):
    at = at[at < branches * width]
    computed[line * branches * width + at] += 1
  for row, place in enumerate(places):
    mask = batch.mask.reshape(-1, width)[place] > 0
    got = batch.actions.reshape(-1, width)[place][mask]
    assert got.tolist() == actions[row].tolist()
    # Each of its tokens is computed once.
    assert (computed[place * width :][: len(got)] == 1).all()
    line, past = place // branches, batch.past.reshape(-1)[place]
    tries, ends, depths = (
      x.reshape(-1, x.shape[-1])[line]
      for x in (batch.tries, batch.ends, batch.depths)
    )
    seen = np.flatnonzero((np.arange(len(ends)) <= past) & (past < ends))
    assert tries[seen].tolist() == prompts[row][:-1]
    assert depths[seen].tolist() == list(range(len(seen)))
    assert batch.first.reshape(-1)[place] == prompts[row][-1]
    assert batch.advantages.reshape(-1)[place] == row
  assert batch.mask.sum() == computed.sum() == sum(len(a) for a in actions)
  assert batch.tries.shape[1] % multiple == 0
  assert batch.mask.any((2, 3)).any(1).sum() >= 1
  assert 0 <= batches.padding_share(batch) < 1
