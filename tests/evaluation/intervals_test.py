"""Intervals and pass@k, by hand."""

import numpy as np
import pytest

from pivotrl_jax.evaluation import intervals


def test_wilson():
  # 8 of 10, z = 1.96: centre (.8 + .19207) / 1.38415 = .71674, half
  # 1.96 sqrt(.016 + .0096036) / 1.38415 = .22658.
  low, high = intervals.wilson(8, 10)
  assert low == pytest.approx(0.4902, abs=1e-4)
  assert high == pytest.approx(0.9433, abs=1e-4)
  assert intervals.wilson(0, 10)[0] == 0.0
  assert intervals.wilson(10, 10)[1] == pytest.approx(1.0)
  assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_paired_difference():
  # Differences 1, 0, 1, 0: mean .5, unbiased sd .57735, half 1.96 * .288675.
  mean, low, high = intervals.paired_difference(
    np.array([0, 0, 0, 1]), np.array([1, 0, 1, 1])
  )
  assert mean == 0.5
  assert (
    high - mean == pytest.approx(mean - low) == pytest.approx(0.56579, abs=1e-5)
  )
  with pytest.raises(ValueError, match="1 and 2 tasks"):
    intervals.paired_difference(np.zeros(1), np.zeros(2))


def test_pass_at_k():
  # 2 of 4 succeed. Some of two: 1 - C(2,2)/C(4,2) = 5/6; both: 1/6.
  assert intervals.pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
  assert intervals.pass_hat_k(2, 4, 2) == pytest.approx(1 / 6)
  assert intervals.pass_at_k(4, 4, 3) == 1.0
  assert intervals.pass_hat_k(2, 4, 3) == 0.0
  with pytest.raises(ValueError, match="k 5; expected 1 to 4"):
    intervals.pass_at_k(1, 4, 5)
