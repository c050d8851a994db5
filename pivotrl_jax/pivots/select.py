"""Profiles -> pivots: the paper's filter (eq. 5) and its ablations."""

import collections
from collections.abc import Sequence
import pathlib
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records

RULES = ("difficult", "mixed", "random")
MIN_STD = 1e-3
# Rewards lie in [0, 1]; the variance of equal ones may round to 1e-34.
_ALIKE = 1e-12


def keep(
  means: np.ndarray,
  variances: np.ndarray,
  *,
  rule: str,
  threshold: float,
  keep_all_fail: bool,
  min_std: float = MIN_STD,
) -> np.ndarray:
  """Which candidates a rule keeps; never those without any verdict.

  Args:
    means, variances: `[N]` of the profiles' rewards; None or NaN where no
      verdict could be had.
    rule: "difficult" (variance > 0 and mean < threshold), "mixed"
      (variance > 0) or "random" (all).
    threshold: lambda_diff of the difficult rule.
    keep_all_fail: the difficult rule as the released data look: mean <=
      threshold, those that never succeed included.
    min_std: rewards whose std is not above it have no variance.

  Returns:
    `[N]` bool.

  Raises:
    errors.InputError: an unknown rule.
  """
  means, variances = (np.asarray(x, np.float64) for x in (means, variances))
  mixed = variances > max(min_std**2, _ALIKE)
  if rule == "difficult":
    return means <= threshold if keep_all_fail else mixed & (means < threshold)
  if rule == "mixed":
    return mixed
  if rule == "random":
    return ~np.isnan(means)
  raise errors.InputError(
    f"config.select: {rule!r}; expected one of {', '.join(RULES)}"
  )


def select(
  profiles: Sequence[types.Profile],
  *,
  rule: str,
  threshold: float,
  keep_all_fail: bool,
  seed: int,
  count: int,
  min_std: float = MIN_STD,
) -> list[types.Pivot]:
  """The pivots, in the profiles' order.

  Args:
    profiles: of all candidates.
    rule, threshold, keep_all_fail, min_std: see `keep`.
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
      min_std=min_std,
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


def by_config(
  config: Any, profiles: Sequence[types.Profile]
) -> list[types.Pivot]:
  """`select` by a run's own rule."""
  return select(
    profiles, **_rule(config), seed=config.seed, count=config.pivots.count
  )


def _rule(config):
  """What `keep` takes of a config."""
  return {
    "rule": config.select,
    "threshold": config.pivots.threshold,
    "keep_all_fail": config.pivots.keep_all_fail,
    "min_std": config.pivots.min_std,
  }


def run(config: Any, workdir: pathlib.Path) -> None:
  """profiles.jsonl -> pivots.jsonl; the others to skipped.jsonl."""
  path = workdir / "profiles.jsonl"
  profiles = list(records.read_profiles(path))
  rule = _rule(config)
  pivots = by_config(config, profiles)
  kept = {p.candidate_id for p in pivots}
  skipped = [
    {"id": p.candidate_id, "reason": _reason(p, rule)}
    for p in profiles
    if p.candidate_id not in kept
  ]
  records.replace_skipped(workdir, "select", skipped)
  counts = collections.Counter(row["reason"] for row in skipped)
  shown = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
  if not pivots:
    raise errors.InputError(
      f"{path}: no pivot among {len(profiles)} candidates"
      f" ({shown or 'empty file'}){_commonest(profiles)}; expected at least 1:"
      f" {_advice(config, counts, profiles)}"
    )
  records.write_jsonl(
    workdir / "pivots.jsonl", map(records.pivot_to_json, pivots)
  )
  logging.info(
    "select: %d pivots of %d candidates by %s, mean reward %.3f; %s",
    len(pivots),
    len(profiles),
    config.select,
    np.mean([p.mean for p in pivots]),
    shown or "none left out",
  )


def _reason(profile, rule):
  """Why a candidate is no pivot."""
  if profile.mean is None:
    return "no_verdict"
  mean, variance = np.array([profile.mean]), np.array([profile.variance])
  if keep(mean, variance, **rule)[0]:
    return "not_drawn"
  if not keep(mean, variance, **rule | {"rule": "mixed"})[0]:
    return {0.0: "all_fail", 1.0: "all_pass"}.get(profile.mean, "all_alike")
  return "too_easy"


def _commonest(profiles):
  """What most samples that failed ended as, with its count."""
  failed = collections.Counter(
    reason
    for p in profiles
    for reward, reason in zip(p.rewards, p.reasons, strict=True)
    if not reward
  )
  if not failed:
    return ""
  [(reason, count)] = failed.most_common(1)
  total = sum(p.group_size for p in profiles)
  return f"; {count} of {total} samples ended as {reason}"


def _advice(config, counts, profiles):
  """The knob that brings back most of what was left out."""
  reasons = [reason for p in profiles for reason in p.reasons]
  if 2 * reasons.count("cut_off") > len(reasons):
    return "raise config.rollout.max_tokens"
  if counts["no_verdict"]:
    return "see to config.verifier.judge.url and start again"
  if counts["too_easy"]:
    return "raise config.pivots.threshold or set config.select=mixed"
  if counts["all_fail"] and config.select == "difficult":
    return (
      "raise config.profile.group_size or config.warm_start.steps, or set"
      " config.pivots.keep_all_fail=True"
    )
  if counts["all_alike"]:
    return "raise config.profile.group_size or lower config.pivots.min_std"
  return "raise config.profile.group_size or config.profile.trajectories"
