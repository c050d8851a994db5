"""Profiles -> pivots: the paper's filter (eq. 5) and its ablations."""

from collections.abc import Sequence
import pathlib
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records

RULES = ("difficult", "mixed", "random")


def keep(
    means: np.ndarray,
    variances: np.ndarray,
    *,
    rule: str,
    threshold: float,
    keep_all_fail: bool,
) -> np.ndarray:
  """Which candidates a rule keeps.

  Args:
    means, variances: `[N]` of the profiles' rewards.
    rule: "difficult" (variance > 0 and mean < threshold), "mixed"
      (variance > 0) or "random" (all).
    threshold: lambda_diff; strict.
    keep_all_fail: also keep those that never succeed, as the released data
      do.

  Returns:
    `[N]` bool.
  """
  if rule == "random":
    return np.ones(len(means), bool)
  kept = variances > 0
  if rule == "difficult":
    kept &= means < threshold
  if keep_all_fail:
    kept |= means == 0
  return kept


def select(
    profiles: Sequence[types.Profile],
    *,
    rule: str,
    threshold: float,
    keep_all_fail: bool,
    seed: int,
    count: int,
) -> list[types.Pivot]:
  """The pivots, in the profiles' order.

  Args:
    profiles: of all candidates.
    rule, threshold, keep_all_fail: see `keep`.
    seed: of the draw, where there are more than `count`.
    count: most pivots, a uniform sample; 0 keeps all.
  """
  means = np.array([p.mean for p in profiles], np.float64)
  variances = np.array([p.variance for p in profiles], np.float64)
  chosen = np.flatnonzero(
      keep(
          means,
          variances,
          rule=rule,
          threshold=threshold,
          keep_all_fail=keep_all_fail,
      )
  )
  if count and len(chosen) > count:
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(chosen, count, replace=False))
  return [
      types.Pivot(
          profiles[i].candidate_id, profiles[i].mean, profiles[i].variance, rule
      )
      for i in chosen
  ]


def run(config: Any, workdir: pathlib.Path) -> None:
  """profiles.jsonl -> pivots.jsonl."""
  profiles = list(records.read_profiles(workdir / "profiles.jsonl"))
  pivots = select(
      profiles,
      rule=config.select,
      threshold=config.pivots.threshold,
      keep_all_fail=config.pivots.keep_all_fail,
      seed=config.seed,
      count=config.pivots.count,
  )
  means = np.array([p.mean for p in profiles])
  flat = np.array([p.variance == 0 for p in profiles])
  counts = (
      f"{len(profiles)} candidates, {int((flat & (means == 0)).sum())} all"
      f" fail, {int((flat & (means > 0)).sum())} all alike above 0"
  )
  if not pivots:
    raise errors.InputError(
        f"{workdir}/profiles.jsonl: no pivot among {counts}; expected one (try"
        " select=mixed, a larger pivots.threshold or profile.group_size)"
    )
  records.write_jsonl(
      workdir / "pivots.jsonl", map(records.pivot_to_json, pivots)
  )
  logging.info(
      "select: %s; %d pivots by %s, mean reward %.3f",
      counts, len(pivots), config.select, np.mean([p.mean for p in pivots]),
  )  # fmt: skip
