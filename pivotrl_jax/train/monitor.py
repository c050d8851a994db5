"""What a step logs beyond its loss: signal, ordering, mismatch, drift."""

import collections
from collections.abc import Callable, Sequence
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax import seeds
from pivotrl_jax.chat import render
from pivotrl_jax.data import batches
from pivotrl_jax.diagnostics import ordering
from pivotrl_jax.diagnostics import signal
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.evaluation import suites
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import parallel
from pivotrl_jax.train import step as step_lib

Scalars = dict[str, float]
_WINDOW, _DEAD_SHARE = 10, 0.9
# Why a group teaches nothing -> what to turn.
_KNOBS = {
  "no_verdict": "see to config.verifier.judge.url",
  "all_cut_off": "raise config.rollout.max_tokens",
  "all_fail": (
    "raise config.rollout.group_size, or for pivots set config.select=difficult"
  ),
  "all_pass": "lower config.train.steps, or for pivots config.pivots.threshold",
  "all_alike": "lower config.train.min_std",
}


class Monitor:
  """Measures steps against the reference policy.

  A few prompts that have nothing to do with the task, and actions on them
  sampled once from the reference, are kept: how training moves *their*
  order is what Theorem 3.3 says nothing about.
  """

  def __init__(
    self,
    config: Any,
    policy: policy_lib.Policy,
    engine: base.Engine,
    log_probs_fn: Callable[..., Any],
  ):
    self._score = parallel.reading(
      functools.partial(_sequence_log_probs, log_probs_fn), config.train
    )
    watched = config.train.watch_every and config.train.watch_prompts
    self._watched, self._places = (
      _watched(config, policy, engine) if watched else (None, None)
    )
    self._shape = (config.train.watch_prompts, config.train.watch_actions)
    self._every = config.train.watch_every
    self._warm = not self._every
    self._min_std = config.train.min_std
    self._asks = bool(config.verifier.judge.url)
    self._dead = DeadGroups()
    if self._watched is not None:
      params = policy_lib.on_device(policy.params)
      self._start = self._watched_log_probs(params)

  def due(self, index: int) -> bool:
    """Whether a step logs how it stands to the reference policy."""
    return bool(self._every) and not index % self._every

  def measures(self, index: int) -> bool:
    """Whether it is to compute that: the first of a process does whether it
    is due or not, so that no later step compiles.
    """
    return self.due(index) or not self._warm

  def rollouts(
    self,
    groups: Sequence[rollouts.Group],
    rewards: np.ndarray,
    batch: batches.TrainBatch,
    tokens: int,
  ) -> Scalars:
    """`rollout/` and `signal/` scalars of a step's groups, and which part of
    them is trained on.

    Args:
      groups: what was sampled.
      rewards: `[B, G]`, NaN where no verdict could be had.
      batch: what of it is trained on.
      tokens: sampled.
    """
    completions = [c for g in groups for c in g.completions]
    reasons = [v.reason for g in groups for v in g.verdicts]
    self._dead.add([dead(g, self._min_std) for g in groups])
    trackers = jax.device_get(
      signal.group_signal(
        jnp.asarray(rewards),
        jnp.asarray(~np.isnan(rewards)),
        min_std=self._min_std,
      )
    )
    scalars = {
      "rollout/reward_mean": float(trackers.pop("reward_mean")),
      "rollout/tokens": float(tokens),
      "rollout/rows": float(len(completions)),
      "train/rows": float((batch.mask > 0).any(-1).sum()),
      "train/tokens": float((batch.mask > 0).sum()),
      "rollout/action_tokens": float(
        np.mean([len(c.ids) for c in completions])
      ),
      "rollout/cut_off": reasons.count("cut_off") / len(reasons),
      **{f"signal/{k}": float(v) for k, v in trackers.items()},
      "signal/expected_gain": float(trackers["reward_std"]),
    }
    if batch.mask.any():
      scalars["rollout/padding"] = batches.padding_share(batch)
    if self._asks:
      scalars["rollout/no_verdict"] = float(np.isnan(rewards).mean())
    return scalars

  def ordering(
    self,
    rewards: np.ndarray,
    log_probs: np.ndarray,
    start: np.ndarray,
    means: np.ndarray,
    kept: np.ndarray,
  ) -> Scalars:
    """`ordering/` scalars: KL and log-ratio spread within each class.

    Args:
      rewards, log_probs, start: `[B, G]`; sequence log-probs under the
        policy that sampled and under the reference.
      means: `[B]` the profile's mean reward, rho.
      kept: `[B, G]` bool, the samples that count.

    Returns:
      Means over the states that sampled what a figure needs.
    """
    accept, kept = jnp.asarray(rewards > 0), jnp.asarray(kept)
    now, before = jnp.asarray(log_probs), jnp.asarray(start)
    rho = signal.clip_mass(jnp.asarray(means), rewards.shape[1])
    split = ordering.sampled_split(now, before, accept, rho, kept)
    parts = {
      "kl": split["kl"],
      "kl_inside": split["inside"],
      "kl_outside": split["outside"],
      "jump": split["jump"],
    }
    for name, side in (("inside", accept & kept), ("outside", ~accept & kept)):
      parts[f"spread_{name}"] = jnp.where(
        side.sum(1) > 1, ordering.spread(now, before, side), jnp.nan
      )
    host = jax.device_get(parts)
    finite = {k: v[np.isfinite(v)] for k, v in host.items()}
    return {
      f"ordering/{k}": float(v.mean()) for k, v in finite.items() if len(v)
    }

  def held_out(self, params: Any, index: int) -> Scalars:
    """`heldout/` scalars: order and drift on the watched prompts.

    The last of a step that a monitor is asked.
    """
    measured, self._warm = self.measures(index), True
    if self._watched is None or not measured:
      return {}
    now = jnp.asarray(self._watched_log_probs(params))
    start = jnp.asarray(self._start)
    # Equal samples are one action.
    distinct = jnp.asarray(self._distinct())
    kept = jax.device_get(ordering.order_kept(now, start, distinct))
    drift = np.where(distinct, np.abs(now - start), 0.0)
    taus = kept["tau"][np.isfinite(kept["tau"])]
    scalars = {
      "heldout/drift": float(drift.sum() / max(distinct.sum(), 1)),
      "heldout/inversions": float(kept["inversions"].sum()),
    }
    if len(taus):
      scalars["heldout/tau"] = float(taus.mean())
    return scalars if self.due(index) else {}

  def _watched_log_probs(self, params):
    found = np.asarray(self._score(params, self._watched))
    return found.reshape(-1)[self._places].reshape(self._shape)

  def _distinct(self):
    ids = (
      np.asarray(self._watched.actions)
      .reshape(-1, self._watched.actions.shape[-1])[self._places]
      .reshape(*self._shape, -1)
    )
    out = np.ones(self._shape, bool)
    for row, actions in enumerate(ids):
      seen = set()
      for i, action in enumerate(actions):
        out[row, i] = action.tobytes() not in seen
        seen.add(action.tobytes())
    return out


class DeadGroups:
  """Says in one line, with the cause, that most groups teach nothing."""

  def __init__(self):
    self._recent = collections.deque(maxlen=_WINDOW)

  def add(self, causes: Sequence[str | None]) -> None:
    """Takes up a step: of each of its groups what `dead` says."""
    self._recent.append(causes)
    causes = [cause for step in self._recent for cause in step]
    why = collections.Counter(cause for cause in causes if cause)
    if len(self._recent) < _WINDOW or why.total() < _DEAD_SHARE * len(causes):
      return
    logging.warning(
      "train: %d of %d groups of the last %d steps teach nothing (%s): %s",
      why.total(), len(causes), _WINDOW,
      ", ".join(f"{n} {cause}" for cause, n in why.most_common()),
      _KNOBS[why.most_common(1)[0][0]],
    )  # fmt: skip
    self._recent.clear()


def dead(group: rollouts.Group, min_std: float) -> str | None:
  """Why a group has no advantage, a key of `_KNOBS`; None where it has."""
  rewards = np.array([r for r in group.rewards if r is not None])
  if not rewards.size:
    return "no_verdict"
  if rewards.std() > min_std:
    return None
  if all(v.reason == "cut_off" for v in group.verdicts):
    return "all_cut_off"
  return {0.0: "all_fail", 1.0: "all_pass"}.get(rewards.mean(), "all_alike")


def _sequence_log_probs(log_probs_fn, params, batch):
  log_probs = step_lib.score(log_probs_fn, params, batch)
  return jnp.where(batch.mask > 0, log_probs, 0.0).sum(-1)


def _watched(config, policy, engine):
  """Actions of the reference on prompts outside the task, packed."""
  t = config.train
  questions = suites.spread("validation", config.seed, t.watch_prompts)
  prompts = [
    render.prompt_ids(policy.tokenizer, q.messages, ())
    for q in questions
    for _ in range(t.watch_actions)
  ]
  sampled = engine.sample(
    prompts,
    base.SamplingParams(
      max_tokens=config.rollout.max_tokens,
      stop_ids=policy.tokenizer.stop_ids,
    ),
    [seeds.row_seed(config.seed, "watch", i) for i in range(len(prompts))],
  )
  return batches.pack(
    batches.even_rows(
      prompts, [c.ids for c in sampled], [c.log_probs for c in sampled]
    ),
    batch_tokens=config.train.batch_tokens,
  )
