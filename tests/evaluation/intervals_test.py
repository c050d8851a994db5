"""Intervals and pass@k, by hand."""

import numpy as np
import pytest
from scipy import stats

from pivotrl_jax.evaluation import intervals


def test_wilson():
  # 8 of 10, z = 1.96: centre (.8 + .19207) / 1.38415 = .71674, half
  # 1.96 sqrt(.016 + .0096036) / 1.38415 = .22658.
  low, high = intervals.wilson(8, 10)
  assert low == pytest.approx(0.4902, abs=1e-4)
  assert high == pytest.approx(0.9433, abs=1e-4)
  # 0 of 25 gave 7e-18: an error bar of a negative length.
  for n in range(1, 400):
    assert intervals.wilson(0, n)[0] == 0.0
    assert intervals.wilson(n, n)[1] == 1.0
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


def test_crossed_mean():
  # Seeds 1, 0 and 3, 2: means 1/2, 5/2; tasks 2, 1; mean 3/2. MS of seeds
  # 2 * 2 = 4, of tasks 2 * 1/2 = 1, no rest: variance (4 + 1) / 4, degrees
  # 25 / (16 + 1) = 1.4706; t = 6.1754 (scipy), half 6.1754 * sqrt(1.25).
  mean, low, high = intervals.crossed_mean(np.array([[1, 0], [3, 2]]))
  assert mean == 1.5
  half = stats.t.ppf(0.975, 25 / 17) * np.sqrt(1.25)
  assert high - mean == pytest.approx(mean - low) == pytest.approx(half)
  # One seed: the t interval over tasks. Mean 1/2, sd .57735, t_3 = 3.1824.
  mean, low, high = intervals.crossed_mean(np.array([[1, 0, 1, 0]]))
  assert high - mean == pytest.approx(3.18245 * 0.288675, abs=1e-4)
  assert intervals.crossed_mean(np.ones((2, 3))) == (1.0, 1.0, 1.0)
  with pytest.raises(ValueError, match="1 tasks"):
    intervals.crossed_mean(np.ones((5, 1)))


@pytest.mark.parametrize("of_seeds", [0.0, 0.2])
def test_crossed_mean_covers(of_seeds):
  # 95 % of 400 intervals hold the truth, within 3 sd (1.1 % each), or more
  # where parts of the variance are 0.
  rng = np.random.default_rng(0)
  held = 0
  for _ in range(400):
    values = of_seeds * rng.normal(size=(5, 1)) + rng.normal(size=(5, 40))
    values += 0.3 * rng.normal(size=(1, 40))
    _, low, high = intervals.crossed_mean(values)
    held += low <= 0 <= high
  assert 0.917 <= held / 400 <= 0.99


def test_pass_at_k():
  # 2 of 4 succeed. Some of two: 1 - C(2,2)/C(4,2) = 5/6; both: 1/6.
  assert intervals.pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
  assert intervals.pass_hat_k(2, 4, 2) == pytest.approx(1 / 6)
  assert intervals.pass_at_k(4, 4, 3) == 1.0
  assert intervals.pass_hat_k(2, 4, 3) == 0.0
  with pytest.raises(ValueError, match="k 5; expected 1 to 4"):
    intervals.pass_at_k(1, 4, 5)
