"""When groups teach nothing, the line says why."""

import pytest

from pivotrl_jax import types
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import monitor


def _group(rewards, reason="r"):
  verdicts = tuple(types.Verdict(r, reason) for r in rewards)
  return rollouts.Group(None, (), (), verdicts)


@pytest.mark.parametrize(
  ("rewards", "reason", "want"),
  [
    ([0.0, 1.0], "r", None),
    ([0.0, 0.0], "r", "all_fail"),
    ([1.0, 1.0], "r", "all_pass"),
    ([0.3] * 7 + [0.3001], "r", "all_alike"),
    ([0.0, 0.0], "cut_off", "all_cut_off"),
    ([None, None], "judge_unavailable", "no_verdict"),
    ([None, 1.0, 0.0], "r", None),
    ([None, 1.0], "r", "all_pass"),
  ],
)
def test_causes(rewards, reason, want):
  assert monitor.dead(_group(rewards, reason), 1e-3) == want


def test_nine_of_ten_over_ten_steps(caplog):
  groups = monitor.DeadGroups()
  alive, dead = [None, "all_fail"], ["all_cut_off", "all_cut_off"]
  with caplog.at_level("WARNING"):
    # 17 of 20 are not enough; an eleventh step makes it 18.
    for step in [alive] * 3 + [dead] * 7:
      groups.add(step)
    assert not caplog.records
    groups.add(dead)
    [record] = caplog.records
    assert record.getMessage() == (
      "train: 18 of 20 groups of the last 10 steps teach nothing"
      " (16 all_cut_off, 2 all_fail): raise config.rollout.max_tokens"
    )
    # Not again at each step.
    for _ in range(9):
      groups.add(dead)
    assert len(caplog.records) == 1
    groups.add(dead)
    assert len(caplog.records) == 2
