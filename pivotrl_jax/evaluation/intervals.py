"""Intervals of success rates, and pass@k. Pure numpy."""

from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

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
  # Which has the rate in it, whatever is rounded.
  return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


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


def crossed_mean(values: np.ndarray) -> tuple[float, float, float]:
  """Mean over seeds and tasks, both samples of more, with its 95 % interval.

  Two-way random effects without replication (Searle, Casella, McCulloch,
  "Variance Components", 4.7): the variance of the mean is (MS of seeds + MS
  of tasks - MS of the rest) / (S T), parts below 0 as 0; t with
  Satterthwaite's degrees of freedom. With one seed, over tasks alone.

  Args:
    values: `[S, T]` scores, or differences of paired scores, by seed and
      task. Where seeds have tasks of their own, their order is arbitrary.

  Returns:
    (mean, low, high).

  Raises:
    ValueError: fewer than two tasks.
  """
  values = np.asarray(values, np.float64)
  seeds, tasks = values.shape
  if tasks < 2:
    raise ValueError(f"{tasks} tasks; expected 2 or more")
  mean = values.mean()
  by_seed, by_task = values.mean(1), values.mean(0)
  of_tasks = seeds * by_task.var(ddof=1)
  squares, freedom = [of_tasks], [tasks - 1]
  if seeds > 1:
    of_seeds = tasks * by_seed.var(ddof=1)
    rest = values - by_seed[:, None] - by_task + mean
    of_rest = (rest**2).sum() / ((seeds - 1) * (tasks - 1))
    kept = [
      (square, degrees)
      for square, degrees in ((of_seeds, seeds - 1), (of_tasks, tasks - 1))
      if square > of_rest
    ]
    # Each kept square holds the rest once; the mean's variance does once.
    kept.append(((1 - len(kept)) * of_rest, (seeds - 1) * (tasks - 1)))
    squares, freedom = zip(*kept, strict=True)
  total = sum(squares)
  if not total:
    return float(mean), float(mean), float(mean)
  degrees = total**2 / sum(s**2 / d for s, d in zip(squares, freedom))
  half = stats.t.ppf(0.975, degrees) * math.sqrt(total / values.size)
  return float(mean), float(mean - half), float(mean + half)


def bootstrap_mean(
  groups: Sequence[np.ndarray], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
  """Mean over groups of their means, with a bootstrap 95 % interval.

  Seeds and tasks of each group are drawn anew, independently: Owen's
  pigeonhole bootstrap ("The pigeonhole bootstrap", 2007), whose intervals are
  rather too wide than too narrow.

  Args:
    groups: `[S_g, T_g]` scores, or differences of paired scores, by seed and
      task; each group counts the same.
    draws: bootstrap samples.
    seed: of the draws.

  Returns:
    (mean, low, high).
  """
  rng = np.random.default_rng(seed)
  total = np.zeros(draws)
  for values in groups:
    total += redrawn_means(values, rng, draws)
  mean = float(np.mean([np.mean(values) for values in groups]))
  low, high = np.quantile(total / len(groups), [0.025, 0.975])
  return mean, float(low), float(high)


def redrawn_means(
  values: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
  """Means of scores whose seeds and tasks are drawn anew.

  Args:
    values: `[..., S, T]` scores by seed and task; what stands before is drawn
      alike.
    rng: draws.
    draws: how often.

  Returns:
    `[..., draws]`.
  """
  seeds, tasks = (
    rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in values.shape[-2:]
  )
  return ((seeds @ values) * tasks).sum(-1)


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
