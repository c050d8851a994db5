"""The learning signal of reward groups (paper, 3.1-3.2, 3.4 items 1, 6)."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np


def group_signal(rewards: jax.Array) -> dict[str, jax.Array]:
  """Reward-variance trackers of a batch of groups.

  Args:
    rewards: `[B, G]`.

  Returns:
    Scalars: "reward_mean"; "reward_std", the mean population std of the
    groups, which estimates the first-order reward gain of a natural GRPO step
    without bias (3.2 v); "zero_variance", the share of groups that cannot
    move the policy (Prop. 3.1); "reward_variance", unbiased, the mean.
  """
  chex.assert_rank(rewards, 2)
  rewards = rewards.astype(jnp.float32)
  # Shifted, so that equal rewards give exact zeros.
  shifted = rewards - rewards[:, :1]
  variance = jnp.mean(
      (shifted - shifted.mean(1, keepdims=True)) ** 2, axis=1
  )
  size = rewards.shape[1]
  return {
      "reward_mean": rewards.mean(),
      "reward_std": jnp.sqrt(variance).mean(),
      "zero_variance": (variance == 0).mean(dtype=jnp.float32),
      "reward_variance": variance.mean() * size / max(size - 1, 1),
  }


def expected_std(p: float, group_size: int) -> float:
  """E of the population std of G Bernoulli(p) rewards: a group's gain."""
  k = np.arange(group_size + 1)
  pmf = [
      math.comb(group_size, i) * p**i * (1 - p) ** (group_size - i) for i in k
  ]
  share = k / group_size
  return float(np.dot(pmf, np.sqrt(share * (1 - share))))


def zero_variance_probability(p: float, group_size: int) -> float:
  """How often G Bernoulli(p) rewards are all alike."""
  return p**group_size + (1 - p) ** group_size


def keep_probability(p: float, group_size: int, threshold: float) -> float:
  """How often a state of success rate p is profiled into 0 < mean < lambda."""
  return sum(
      math.comb(group_size, k) * p**k * (1 - p) ** (group_size - k)
      for k in range(1, group_size)
      if k / group_size < threshold
  )


def effective_beta(
    mass: jax.Array, start: jax.Array, group_size: int
) -> jax.Array:
  """beta_eff = 1 / (logit q - logit rho) of Theorem 3.3.

  Args:
    mass: `[B]` acceptable mass q now.
    start: `[B]` rho, the same under the starting policy.
    group_size: G; both are clipped to `[1 / 2G, 1 - 1 / 2G]`.

  Returns:
    `[B]`; infinite where nothing moved.
  """
  chex.assert_equal_shape([mass, start])
  edge = 0.5 / group_size
  logit = lambda x: jax.scipy.special.logit(jnp.clip(x, edge, 1 - edge))
  gap = logit(mass) - logit(start)
  return jnp.where(gap == 0, jnp.inf, 1.0 / jnp.where(gap == 0, 1.0, gap))


def gamma(policy: jax.Array, rewards: jax.Array, beta: float) -> jax.Array:
  """Fisher speed of the KL path, std / beta^2 (Theorem 3.2).

  Args:
    policy: `[A]` probabilities of pi_{s,beta}.
    rewards: `[A]`.
    beta: where on the path.
  """
  chex.assert_equal_shape([policy, rewards])
  mean = (policy * rewards).sum()
  return jnp.sqrt((policy * (rewards - mean) ** 2).sum()) / beta**2
