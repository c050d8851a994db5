"""What training does to the order of actions (paper, 3.3, 3.4 items 1-5).

Theorem 3.3: the ideal update lifts the acceptable set and keeps every ratio
inside it and outside it. These functions measure how far a policy is from
that, exactly where all actions are known and from samples where not.
"""

import chex
import jax
import jax.numpy as jnp


def kl_split(
    policy: jax.Array, start: jax.Array, accept: jax.Array
) -> dict[str, jax.Array]:
  """The exact chain rule of KL(pi || pi_0) over an acceptable set.

  Args:
    policy, start: `[A]` probabilities, in the open simplex.
    accept: `[A]` bool, with members and non-members.

  Returns:
    "kl" = "bernoulli" + q "inside" + (1 - q) "outside", and "mass" q.
  """
  chex.assert_equal_shape([policy, start, accept])
  q, rho = (jnp.where(accept, p, 0.0).sum() for p in (policy, start))
  gap = jnp.log(policy) - jnp.log(start)

  def within(side, now, before):
    p = jnp.where(side, policy, 0.0) / now
    return (p * (gap - jnp.log(now / before))).sum()

  return {
      "kl": (policy * gap).sum(),
      "bernoulli": q * jnp.log(q / rho)
      + (1 - q) * jnp.log((1 - q) / (1 - rho)),
      "inside": within(accept, q, rho),
      "outside": within(~accept, 1 - q, 1 - rho),
      "mass": q,
  }


def sampled_split(
    log_probs: jax.Array,
    start: jax.Array,
    accept: jax.Array,
    rho: jax.Array,
) -> dict[str, jax.Array]:
  """The KL split from actions sampled from pi_theta.

  Args:
    log_probs, start: `[N]` log-probs of the actions under pi_theta, pi_0.
    accept: `[N]` bool.
    rho: acceptable mass under pi_0.

  Returns:
    "kl", "inside", "outside", "jump" (mean log-ratio of accepted minus
    rejected); estimates may be negative, and are NaN where one class is
    empty.
  """
  chex.assert_equal_shape([log_probs, start, accept])
  ratio = log_probs - start
  q = accept.mean(dtype=jnp.float32)
  accepted = _mean(ratio, accept)
  rejected = _mean(ratio, ~accept)
  return {
      "kl": ratio.mean(),
      "inside": accepted - jnp.log(q / rho),
      "outside": rejected - jnp.log((1 - q) / (1 - rho)),
      "jump": accepted - rejected,
  }


def spread(
    log_probs: jax.Array,
    start: jax.Array,
    members: jax.Array,
    weights: jax.Array | None = None,
) -> jax.Array:
  """sd of the log-ratio within a class: 0 iff all its ratios are kept.

  Args:
    log_probs, start: `[..., A]`.
    members: `[..., A]` bool, who is in the class.
    weights: `[..., A]` probabilities; equal where None (sampled actions).

  Returns:
    `[...]`; 0 where the class has fewer than two members.
  """
  chex.assert_equal_shape([log_probs, start, members])
  weights = jnp.where(members, 1.0 if weights is None else weights, 0.0)
  total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
  ratio = jnp.where(members, log_probs - start, 0.0)
  mean = (weights * ratio).sum(-1, keepdims=True) / total
  variance = (weights * (ratio - mean) ** 2 / total).sum(-1)
  return jnp.sqrt(jnp.maximum(variance, 0.0))


def order_kept(
    log_probs: jax.Array, start: jax.Array, members: jax.Array
) -> dict[str, jax.Array]:
  """How much of the order of a class's actions survives.

  Args:
    log_probs, start: `[..., A]` of a fixed set of actions.
    members: `[..., A]` bool; pairs are taken among members only.

  Returns:
    `[...]` each: "tau" (Kendall's tau-b, NaN without a pair that is untied
    on both sides), "inversions", "pairs", and "kept" (pairs of the same
    order; a tie counts as not kept).
  """
  chex.assert_equal_shape([log_probs, start, members])
  size = log_probs.shape[-1]
  pair = members[..., :, None] & members[..., None, :]
  pair &= jnp.triu(jnp.ones((size, size), bool), 1)
  before, after = (
      jnp.where(pair, jnp.sign(x[..., :, None] - x[..., None, :]), 0.0)
      for x in (
          jnp.where(members, start, 0.0),
          jnp.where(members, log_probs, 0.0),
      )
  )
  same = before * after
  total = pair.sum((-1, -2))
  untied = (jnp.abs(before).sum((-1, -2)), jnp.abs(after).sum((-1, -2)))
  scale = jnp.sqrt(untied[0] * untied[1])
  return {
      "tau": jnp.where(
          scale > 0, same.sum((-1, -2)) / jnp.maximum(scale, 1.0), jnp.nan
      ),
      "inversions": (same < 0).sum((-1, -2)),
      "kept": (same > 0).sum((-1, -2)),
      "pairs": total,
  }


def _mean(x, where):
  count = where.sum()
  return jnp.where(
      count > 0,
      jnp.where(where, x, 0.0).sum() / jnp.maximum(count, 1),
      jnp.nan,
  )
