"""Logged natural-gradient norms: of a step's groups, and of random turns."""

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.losses import grpo
from pivotrl_jax.losses import natural_gradient
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import sft

Scalars = dict[str, float]


def random_turns(config: Any, workdir: pathlib.Path) -> list[str]:
  """Candidates to compare the pivots with, in the order of measuring.

  `train.natural_groups` a measurement, drawn from all that were profiled.

  Returns:
    Candidate ids; none where nothing is measured or was profiled.
  """
  t, path = config.train, workdir / "profiles.jsonl"
  if not t.natural_every or not path.exists():
    return []
  ids = [p.candidate_id for p in records.read_profiles(path)]
  count = -(-t.steps // t.natural_every) * t.natural_groups
  return [ids[sft.permuted(len(ids), config.seed, i)] for i in range(count)]


class NaturalLog:
  """Norm, prediction and captured share, every `train.natural_every` steps.

  Args:
    config: the run's.
    turns: `random_turns`, rendered.
    probe: `natural.project`, wrapped as the step is.
    shape: of the batches it measures.
    roll_out: (turns, step index) -> groups, by the step's policy.
  """

  def __init__(
    self,
    config: Any,
    turns: Sequence[rollouts.Turn],
    *,
    probe: Callable[..., Any],
    shape: batches.Shape,
    roll_out: Callable[..., Any],
  ):
    self._every = config.train.natural_every
    self._count = config.train.natural_groups
    self._turns = turns
    self._probe, self._shape, self._roll_out = probe, shape, roll_out
    self._norms = jax.jit(
      functools.partial(
        group_norms,
        damping=config.train.natural_damping,
        estimator=config.train.advantage,
        min_std=config.train.min_std,
      )
    )
    self._directions = config.train.natural_directions
    self._min_std = config.train.min_std
    self._warm = False

  def __call__(
    self, state: Any, index: int, groups: Sequence[rollouts.Group]
  ) -> tuple[Any, Scalars]:
    """`natural/` scalars of a step, before its update.

    The first call of a process measures whether it is due or not, so that no
    later step compiles.

    Args:
      state: before the update; use what comes back.
      index: of the step.
      groups: of the step; the first `train.natural_groups` are measured.

    Returns:
      The state and the scalars: means over the groups measured, those without
      variance included, which have norm 0; {} where nothing is due.
    """
    if not self._every or (index % self._every and self._warm):
      return state, {}
    self._warm = True
    first = index // self._every * self._count
    turns = self._turns[first : first + self._count]
    sides = {"": list(groups[: self._count])}
    if turns:
      sides["random_"] = self._roll_out(turns, index)
    state, found = self._measure(state, [g for s in sides.values() for g in s])
    if index % self._every:
      return state, {}
    scalars, start = {}, 0
    for side, its in sides.items():
      part = slice(start, start + len(its))
      start += len(its)
      for name, values in found.items():
        values = values[part]
        if name == "captured":  # Of those that have something to capture.
          values = values[found["predicted"][part] > 0]
        if len(values):
          scalars[f"natural/{side}{name}"] = float(values.mean())
    return state, scalars

  def _measure(self, state, groups):
    """`group_norms` of groups; those without variance are not computed."""
    # NaN where no verdict could be had.
    rewards = np.array([g.rewards for g in groups], np.float32)
    mixed = np.flatnonzero([_std(row) > self._min_std for row in rewards])
    mixed = mixed if len(mixed) else np.arange(1)
    batch, places = batches.pack(
      score_rows([groups[i] for i in mixed]), self._shape
    )
    state, _, rows = self._probe(state, batch)
    found = jax.device_get(rows["projections"]).reshape(-1, self._directions)
    projections = np.zeros((*rewards.shape, self._directions), np.float32)
    projections[mixed] = found[places].reshape(projections[mixed].shape)
    return state, jax.device_get(self._norms(projections, rewards))


def _std(rewards):
  had = rewards[~np.isnan(rewards)]
  return had.std() if had.size else 0.0


def score_rows(groups: Sequence[rollouts.Group]) -> batches.Rows:
  """The actions of groups, for their log-probs alone: no advantages."""
  return policy_gradient.score_rows(
    [g.turn.prompt for g in groups for _ in g.completions],
    [c for g in groups for c in g.completions],
  )


def group_norms(
  projections: jax.Array,
  rewards: jax.Array,
  *,
  damping: float,
  estimator: str,
  min_std: float = grpo.MIN_STD,
) -> dict[str, jax.Array]:
  """A group's natural-gradient norm in advantages and in reward.

  Args:
    projections: `[P, G, R]` of the scores of its actions.
    rewards: `[P, G]`, NaN where there is none.
    damping: as a multiple of the mean eigenvalue of the group's Fisher matrix
      (of the G that are not 0): at 1, half of a direction of mean curvature is
      captured in square.
    estimator, min_std: of advantages; see `grpo.advantages`.

  Returns:
    `[P]` each: "norm", "predicted" and "captured" of the advantages (see
    `natural_gradient.gram_norms`); "reward_norm" and "reward_std", the same
    of r - mean(r), whose prediction is the group's std (Theorem 3.2).
  """
  unit = natural_gradient.mean_curvature(projections)
  valid = ~jnp.isnan(rewards)
  norms = functools.partial(
    natural_gradient.gram_norms, projections, damping=damping * unit,
    valid=valid,
  )  # fmt: skip
  advantages = functools.partial(
    grpo.advantages, rewards, valid=valid, min_std=min_std
  )
  found = norms(advantages(estimator=estimator))
  of_reward = norms(advantages(estimator="dr_grpo"))
  return found | {
    "reward_norm": of_reward["norm"],
    "reward_std": of_reward["predicted"],
  }
