"""Intervals of success rates, and pass@k. Pure numpy."""

import math

import numpy as np

Z = 1.959963984540054  # 97.5 % point of the normal distribution.


def wilson(successes: int, count: int) -> tuple[float, float]:
  """The Wilson 95 % interval of a rate; (0, 1) without trials."""
  if not count:
    return 0.0, 1.0
  rate, z2 = successes / count, Z * Z
  centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
  half = (
    Z
    * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    / (1 + z2 / count)
  )
  return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
  before: np.ndarray, after: np.ndarray
) -> tuple[float, float, float]:
  """Mean of `after - before` on the same tasks, with its 95 % interval.

  Args:
    before, after: `[N]` scores, task by task.

  Returns:
    (difference, low, high), by the normal approximation with the unbiased
    variance of the differences.

  Raises:
    ValueError: fewer than two tasks, or lengths that differ.
  """
  if len(before) != len(after) or len(before) < 2:
    raise ValueError(
      f"{len(before)} and {len(after)} tasks; expected the same, 2 or more"
    )
  gap = np.asarray(after, np.float64) - np.asarray(before, np.float64)
  half = Z * gap.std(ddof=1) / math.sqrt(len(gap))
  return float(gap.mean()), float(gap.mean() - half), float(gap.mean() + half)


def pass_at_k(successes: int, count: int, k: int) -> float:
  """Unbiased chance that one of k samples succeeds (arXiv:2107.03374)."""
  if not 1 <= k <= count:
    raise ValueError(f"k {k}; expected 1 to {count}")
  return 1.0 - math.comb(count - successes, k) / math.comb(count, k)


def pass_hat_k(successes: int, count: int, k: int) -> float:
  """Unbiased chance that all of k samples succeed (tau-bench's pass^k)."""
  if not 1 <= k <= count:
    raise ValueError(f"k {k}; expected 1 to {count}")
  return math.comb(successes, k) / math.comb(count, k)
