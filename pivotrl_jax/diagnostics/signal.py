"""The learning signal of reward groups (paper, 3.1-3.2, 3.4 items 1, 6)."""

import chex
import jax
import jax.numpy as jnp
import jax.scipy.stats


def group_signal(
  rewards: jax.Array,
  valid: jax.Array | None = None,
  *,
  min_std: float = 0.0,
) -> dict[str, jax.Array]:
  """Reward-variance trackers of a batch of groups.

  Args:
    rewards: `[B, G]`.
    valid: `[B, G]` bool, False on padding; a row without any is no group.
    min_std: a population std not above it is no variance.

  Returns:
    Scalars: "reward_mean" over samples, and means over groups: "reward_std",
    the population std, which estimates the first-order reward gain of a
    natural GRPO step without bias (3.2 v); "zero_variance", the share of
    groups that cannot move the policy (Prop. 3.1); "reward_variance",
    unbiased (ddof 1), 0 for a group of one.
  """
  chex.assert_rank(rewards, 2)
  if valid is None:
    valid = jnp.ones(rewards.shape, bool)
  chex.assert_equal_shape([rewards, valid])
  rewards = jnp.where(valid, rewards.astype(jnp.float32), 0.0)
  size = valid.sum(1)
  # Shifted by a reward of the group: equal rewards give exact zeros.
  first = jnp.take_along_axis(rewards, valid.argmax(1, keepdims=True), 1)
  shifted = jnp.where(valid, rewards - first, 0.0)
  mean = shifted.sum(1) / jnp.maximum(size, 1)
  squares = jnp.where(valid, (shifted - mean[:, None]) ** 2, 0.0).sum(1)
  groups = jnp.maximum((size > 0).sum(), 1)
  std = jnp.sqrt(squares / jnp.maximum(size, 1))
  return {
    "reward_mean": rewards.sum() / jnp.maximum(size.sum(), 1),
    "reward_std": std.sum() / groups,
    "zero_variance": ((std <= min_std) & (size > 0)).sum() / groups,
    "reward_variance": (squares / jnp.maximum(size - 1, 1)).sum() / groups,
  }


def expected_std(p: jax.Array, group_size: int) -> jax.Array:
  """E of the population std of G Bernoulli(p) rewards: a group's gain.

  Over sqrt(p (1 - p)) it is the natural norm of the expected update (3.2 v).

  Args:
    p: `[...]` success rates.
    group_size: G.

  Returns:
    `[...]`.
  """
  share = jnp.arange(group_size + 1) / group_size
  return _binomial(p, group_size) @ jnp.sqrt(share * (1.0 - share))


def zero_variance_probability(p: jax.Array, group_size: int) -> jax.Array:
  """How often G Bernoulli(p) rewards are all alike; `[...]` like `p`."""
  p = jnp.asarray(p, jnp.float32)
  return p**group_size + (1.0 - p) ** group_size


def keep_probability(
  p: jax.Array, group_size: int, threshold: float
) -> jax.Array:
  """How often a state is profiled into 0 < k / K < threshold (eq. 5).

  Args:
    p: `[...]` success rates.
    group_size: K, samples of the profile.
    threshold: lambda_diff; strict.

  Returns:
    `[...]`.
  """
  kept = [0 < k < group_size and k / group_size < threshold
          for k in range(group_size + 1)]  # fmt: skip
  return _binomial(p, group_size) @ jnp.array(kept, jnp.float32)


def _binomial(p, size):
  p = jnp.asarray(p, jnp.float32)[..., None]
  return jax.scipy.stats.binom.pmf(jnp.arange(size + 1), size, p)


def effective_beta(
  mass: jax.Array, start: jax.Array, group_size: int
) -> jax.Array:
  """beta_eff = 1 / (logit q - logit rho) of Theorem 3.3.

  Args:
    mass: `[...]` acceptable mass q now.
    start: `[...]` rho, the same under the starting policy.
    group_size: G; both are clipped to `[1 / 2G, 1 - 1 / 2G]`.

  Returns:
    `[...]`, negative where the mass fell, infinite where it did not move.
  """
  chex.assert_equal_shape([mass, start])
  now, before = (
    jax.scipy.special.logit(clip_mass(x, group_size)) for x in (mass, start)
  )
  gap = now - before
  return jnp.where(gap == 0, jnp.inf, 1.0 / jnp.where(gap == 0, 1.0, gap))


def clip_mass(mass: jax.Array, group_size: int) -> jax.Array:
  """`mass` kept where its logit is finite: `[1 / 2G, 1 - 1 / 2G]`."""
  edge = 0.5 / group_size
  return jnp.clip(mass, edge, 1.0 - edge)


def gamma(policy: jax.Array, rewards: jax.Array, beta: float) -> jax.Array:
  """Fisher speed of the KL path, std / beta^2 (Theorem 3.2).

  Args:
    policy: `[..., A]` probabilities of pi_{s,beta}; 0 on padding.
    rewards: `[..., A]`.
    beta: where on the path.

  Returns:
    `[...]`.
  """
  chex.assert_equal_shape([policy, rewards])
  rewards = jnp.where(policy > 0, rewards, 0.0)
  mean = (policy * rewards).sum(-1, keepdims=True)
  return jnp.sqrt((policy * (rewards - mean) ** 2).sum(-1)) / beta**2
