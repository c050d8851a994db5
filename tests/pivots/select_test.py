"""The paper's filter (eq. 5), its ablations, and the stage."""

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict
import numpy as np
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.pivots import select

# k successes of K = 5: means 0, .2, .4, .6, .8, 1. At threshold .6 the fourth
# is out by the strict inequality, and in by the other rule's <=.
GROUPS = [[1.0] * k + [0.0] * (5 - k) for k in range(6)]


def profile(name, rewards):
  return types.Profile(
    candidate_id=name,
    policy="p",
    group_size=len(rewards),
    rewards=tuple(rewards),
    reasons=("r",) * len(rewards),
    mean=float(np.mean(rewards)),
    variance=float(np.var(rewards)),
    completions=("c",) * len(rewards),
  )


def profiles(groups=GROUPS):
  return [profile(f"t/{i}", group) for i, group in enumerate(groups)]


def chosen(rows, **knobs):
  knobs = {
    "rule": "difficult", "threshold": 0.6, "keep_all_fail": False, "seed": 0,
    "count": 0,
  } | knobs  # fmt: skip
  return [p.candidate_id for p in select.select(rows, **knobs)]


@pytest.mark.parametrize(
  "knobs, want",
  [
    ({}, "12"),
    ({"keep_all_fail": True}, "0123"),
    ({"threshold": 0.61}, "123"),
    ({"rule": "mixed"}, "1234"),
    ({"rule": "random"}, "012345"),
  ],
)
def test_rules(knobs, want):
  assert chosen(profiles(), **knobs) == [f"t/{i}" for i in want]


def test_equal_fractions_are_no_signal():
  # In binary the mean of seven .1 is not .1: the variance is 2e-34, not 0.
  rows = profiles([[0.1] * 7, [0.1] * 6 + [0.2]])
  assert rows[0].variance > 0
  assert chosen(rows) == ["t/1"]


def test_a_smallest_spread_counts():
  # Stds 3.3e-5 and 1/5 sqrt(6) / 7 = .07.
  rows = profiles([[0.3] * 7 + [0.3001], [0.1] * 6 + [0.3]])
  assert chosen(rows) == ["t/1"]
  assert chosen(rows, min_std=1e-5) == ["t/0", "t/1"]
  assert chosen(rows, min_std=0.08) == []


def test_without_a_verdict_it_is_no_candidate():
  rows = profiles([[1.0, 0.0], [1.0, 0.0]])
  nothing = dataclasses.replace(
    rows[1], rewards=(None, None), mean=None, variance=None
  )
  for rule in select.RULES:
    assert chosen([rows[0], nothing], rule=rule) == ["t/0"]
  assert chosen([rows[0], nothing], keep_all_fail=True) == ["t/0"]


def test_a_pivot_carries_its_profile():
  pivot = select.select(
    profiles(), rule="difficult", threshold=0.6, keep_all_fail=False, seed=0,
    count=0,
  )[1]  # fmt: skip
  # Two of five: mean .4, variance .4 * .6.
  assert pivot.rule == "difficult"
  assert pivot.mean == pytest.approx(0.4)
  assert pivot.variance == pytest.approx(0.24)


@given(
  st.lists(st.integers(0, 8), min_size=1, max_size=30),
  st.integers(0, 12),
  st.integers(0, 2**31),
)
def test_a_draw_is_a_sorted_subset_by_seed(wins, count, seed):
  rows = profiles([[1.0] * k + [0.0] * (8 - k) for k in wins])
  everyone = chosen(rows, rule="mixed")
  got = chosen(rows, rule="mixed", count=count, seed=seed)
  assert got == [name for name in everyone if name in set(got)]
  assert len(got) == (min(count, len(everyone)) if count else len(everyone))
  assert got == chosen(rows, rule="mixed", count=count, seed=seed)


def test_random_is_uniform():
  rows = profiles([[0.0]] * 4)
  drawn = [
    name for seed in range(400) for name in chosen(
      rows, rule="random", count=1, seed=seed
    )
  ]  # fmt: skip
  counts = [drawn.count(f"t/{i}") for i in range(4)]
  # Binomial(400, 1/4): mean 100, sd 8.7; within five sd.
  assert all(abs(c - 100) < 44 for c in counts)


def test_an_unknown_rule_is_named():
  with pytest.raises(errors.InputError, match="config.select: 'hard'"):
    chosen(profiles(), rule="hard")


def stage(tmp_path, rows, **changes):
  records.write_jsonl(
    tmp_path / "profiles.jsonl", map(records.profile_to_json, rows)
  )
  config = config_dict.ConfigDict(
    {
      "select": "difficult",
      "seed": 0,
      "pivots": {
        "threshold": 0.6,
        "keep_all_fail": False,
        "count": 0,
        "min_std": 1e-3,
      },
    }
  )
  config.update_from_flattened_dict(changes)
  select.run(config, tmp_path)


def skipped(tmp_path):
  lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
  return [tuple(json.loads(x).values()) for x in lines]


def test_stage_accounts_for_every_candidate(tmp_path):
  stage(tmp_path, profiles(), **{"pivots.count": 1})
  pivots = list(records.read_pivots(tmp_path / "pivots.jsonl"))
  assert len(pivots) == 1
  other = {"t/1": "t/2", "t/2": "t/1"}[pivots[0].candidate_id]
  assert sorted(skipped(tmp_path)) == sorted([
    ("t/0", "all_fail", "select"), (other, "not_drawn", "select"),
    ("t/3", "too_easy", "select"), ("t/4", "too_easy", "select"),
    ("t/5", "all_pass", "select"),
  ])  # fmt: skip


def test_no_pivot_where_all_is_cut_off_says_so(tmp_path):
  rows = [
    dataclasses.replace(p, reasons=("cut_off",) * 5)
    for p in profiles(GROUPS[:1] * 2)
  ]
  with pytest.raises(errors.InputError) as caught:
    stage(tmp_path, rows)
  assert "10 of 10 samples ended as cut_off" in str(caught.value)
  assert "raise config.rollout.max_tokens" in str(caught.value)


@pytest.mark.parametrize(
  "groups, changes, want",
  [
    (
      GROUPS[:1] * 2 + GROUPS[4:], {},
      r"3.*profiles.jsonl: no pivot among 4 candidates \(2 all_fail,"
      r" 1 all_pass, 1 too_easy\); 11 of 20 samples ended as r;"
      r".*config.pivots.threshold",
    ),
    (
      [[0.3] * 7 + [0.3001]], {},
      r"\(1 all_alike\).*config.pivots.min_std",
    ),
    (GROUPS[:1], {}, r"\(1 all_fail\).*config.pivots.keep_all_fail=True"),
    (GROUPS[5:], {}, r"\(1 all_pass\).*config.profile.group_size"),
    (
      GROUPS[:1], {"select": "mixed"},
      r"\(1 all_fail\).*config.profile.group_size",
    ),
    ([], {}, r"0 candidates \(empty file\)"),
  ],
)  # fmt: skip
def test_no_pivot_says_why_and_what_to_turn(tmp_path, groups, changes, want):
  workdir = tmp_path / "run3"
  workdir.mkdir()
  with pytest.raises(errors.InputError, match=want) as caught:
    stage(workdir, profiles(groups), **changes)
  assert "\n" not in str(caught.value)
  assert not (workdir / "pivots.jsonl").exists()
  assert len(skipped(workdir)) == len(groups)
