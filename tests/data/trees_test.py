"""Prefixes to trees: token for token, and nothing twice."""

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


def test_golden():
  # [1,2,3] carries [1,2] and [1,2,3] itself; [1,3] shares only its 1, [2]
  # nothing: three trunks of 3 + 2 + 1 = 6 tokens for 3+2+3+2+1 = 11.
  prompts = [np.array(p) for p in ([1, 2, 3], [1, 2], [1, 2, 3], [1, 3], [2])]
  found = trees.build(prompts)
  assert [t.trunk.tolist() for t in found] == [[1, 2, 3], [1, 3], [2]]
  assert [t.rows.tolist() for t in found] == [[0, 1, 2], [3], [4]]
  assert found[0].attach.tolist() == [3, 2, 3]


@hypothesis.given(PROMPTS)
def test_every_row_is_a_prefix_of_its_trunk_once(prompts):
  found = trees.build([np.array(p) for p in prompts])
  rows = sorted(int(r) for t in found for r in t.rows)
  assert rows == list(range(len(prompts)))
  for tree in found:
    for row, attach in zip(tree.rows, tree.attach, strict=True):
      assert tree.trunk[:attach].tolist() == prompts[row]
  # No trunk could lie on another.
  trunks = [tuple(t.trunk) for t in found]
  for i, a in enumerate(trunks):
    assert not any(b[: len(a)] == a for j, b in enumerate(trunks) if i != j)


def test_token_bytes_do_not_mix():
  # 256 is bytes 0,0,1,0: as raw bytes, [0] would seem to begin [256].
  assert len(trees.build([np.array([256]), np.array([0])])) == 2


def test_empty_prompt_is_refused():
  with pytest.raises(ValueError, match="prompt 1 is empty"):
    trees.build([np.array([1]), np.array([], np.int32)])


@hypothesis.given(PROMPTS, st.integers(1, 4))
def test_split_keeps_rows(prompts, size):
  for tree in trees.build([np.array(p) for p in prompts]):
    parts = trees.split(tree, size)
    assert sorted(r for p in parts for r in p.rows) == sorted(tree.rows)
    assert all(len(p.rows) <= size for p in parts)
    assert all(len(p.trunk) == p.attach.max() for p in parts)


def test_branches_is_the_least_work():
  def tree(rows, length):
    return trees.Tree(
      np.zeros(length, np.int32), np.arange(rows), np.full(rows, length)
    )

  # Rooms of 2 or 8 branches of 10 tokens. 2 cuts the first trunk in four:
  # 4 * (100 + 20) + (50 + 20) = 550; 8: (100 + 80) + (50 + 80) = 310.
  assert trees.branches([tree(8, 100), tree(2, 50)], 10) == 8
  # With nine small ones 2: 480 + 9 * 70 = 1110; 8: 180 + 9 * 130 = 1350.
  assert trees.branches([tree(8, 100)] + [tree(2, 50)] * 9, 10) == 2


def _rows(lengths, actions):
  return batches.Rows(
    prompts=[np.full(n, i) for i, n in enumerate(lengths)],
    actions=[np.arange(n) for n in actions],
    weights=[np.ones(n) for n in actions],
    advantages=np.arange(float(len(lengths))),
    sampler_log_probs=[np.zeros(n) for n in actions],
  )


def test_trees_fill_lines():
  shape = batches.Shape(
      micro_batches=2, least=1, lines=1, trunk=64, branch=8, branches=4, width=4
  )  # fmt: skip
  batch, places = batches.pack(
    _rows((40, 5, 33, 20, 7), (3, 1, 4, 1, 1)), shape
  )
  # 105 trunk tokens need two lines of 64. A branch takes 8 / 4 = 2 places at
  # least. By length: 40 | 33; 20 on the emptier line, whose 33 + 20 of 64
  # and 4 + 2 of 8 are less than 60 of 64; 7 and 5 on the other: 52 of 64.
  assert places.tolist() == [0, 2, 4, 5, 1]
  assert batch.starts[:, 0].tolist() == [[0, 40, 47, 0], [0, 33, 0, 0]]
  assert batch.attach[:, 0].tolist() == [[40, 7, 5, 1], [33, 20, 1, 1]]
  # Action n, token a at n * 4 + a; 16 where there is none.
  assert batch.places[:, 0].tolist() == [
    [0, 1, 2, 4, 8, 16, 16, 16],
    [0, 1, 2, 3, 4, 16, 16, 16],
  ]
  # Of 2 * (64 + 8) tokens 105 + 10 are used.
  assert batches.padding_share(batch) == pytest.approx(1 - 115 / 144)


def test_more_micro_batches_where_they_do_not_suffice():
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trunk=64, branch=8, branches=4, width=4
  )  # fmt: skip
  batch, places = batches.pack(_rows((40, 40, 40), (1, 1, 1)), shape)
  assert batch.trunks.shape == (4, 1, 64)
  assert places.tolist() == [0, 4, 8]


def test_what_has_no_room_is_refused():
  shape = batches.Shape(
      micro_batches=1, least=1, lines=1, trunk=64, branch=8, branches=4, width=4
  )  # fmt: skip
  with pytest.raises(ValueError, match="a prompt of 65 .* at most 64 and 4"):
    batches.pack(_rows((65,), (1,)), shape)


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
    assert len(batch.trunks) == shape.micro_batches
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
      prompts=[np.array(p) for p in prompts],
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
  branches = batch.attach.shape[-1]
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
    trunk = batch.trunks.reshape(-1, batch.trunks.shape[-1])[place // branches]
    start = batch.starts.reshape(-1)[place]
    attach = batch.attach.reshape(-1)[place]
    assert trunk[start : start + attach].tolist() == prompts[row]
    assert batch.advantages.reshape(-1)[place] == row
  assert batch.mask.sum() == computed.sum() == sum(len(a) for a in actions)
  assert batch.trunks.shape[1] % multiple == 0
  assert batch.mask.any((2, 3)).any(1).sum() >= 1
  assert 0 <= batches.padding_share(batch) < 1
