"""What training does to the order of actions (paper, 3.3, 3.4 items 1-5).

Theorem 3.3: the ideal update lifts the acceptable set and keeps every ratio
inside it and outside it. These functions measure how far a policy is from
that, exactly where all actions are known and from samples where not.

All take leading dimensions (one entry a state) and treat actions outside the
given masks as padding, which may hold anything.
"""

import chex
import jax
import jax.numpy as jnp


def kl_split(
  policy: jax.Array,
  start: jax.Array,
  accept: jax.Array,
  valid: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """The exact chain rule of KL(pi || pi_0) over an acceptable set, eq. (*).

  Args:
    policy, start: `[..., A]` probabilities, in the open simplex.
    accept: `[..., A]` bool, with members and non-members.
    valid: `[..., A]` bool, False on padding.

  Returns:
    `[...]` each: "kl" = "bernoulli" + q "inside" + (1 - q) "outside", and
    "mass" q, the acceptable mass under `policy`.
  """
  chex.assert_equal_shape([policy, start, accept])
  valid = _all_if_none(valid, accept)
  gap = jnp.log(jnp.where(valid, policy, 1.0)) - jnp.log(
    jnp.where(valid, start, 1.0)
  )
  sides = (valid & accept, valid & ~accept)
  now = [_sum(policy, side) for side in sides]
  before = [_sum(start, side) for side in sides]
  shift = [jnp.log(n / b) for n, b in zip(now, before, strict=True)]
  inside, outside = (
    _sum(policy * (gap - shift[i][..., None]), side) / now[i]
    for i, side in enumerate(sides)
  )
  return {
    "kl": _sum(policy * gap, valid),
    "bernoulli": now[0] * shift[0] + now[1] * shift[1],
    "inside": inside,
    "outside": outside,
    "mass": now[0],
  }


def sampled_split(
  log_probs: jax.Array,
  start: jax.Array,
  accept: jax.Array,
  rho: jax.Array,
  valid: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """The KL split of each state, from actions sampled from pi_theta.

  Args:
    log_probs, start: `[..., G]` sequence log-probs of the sampled actions
      under pi_theta and pi_0.
    accept: `[..., G]` bool.
    rho: `[...]` acceptable mass under pi_0, inside (0, 1).
    valid: `[..., G]` bool, False on padding.

  Returns:
    `[...]` each: "kl", "inside", "outside", "jump" (mean log-ratio of
    accepted minus rejected: on the KL path 1 / beta_eff), "mass" q. Estimates
    may be negative, and are NaN where a class they need was not sampled.
  """
  chex.assert_equal_shape([log_probs, start, accept])
  valid = _all_if_none(valid, accept)
  ratio = jnp.where(valid, log_probs, 0.0) - jnp.where(valid, start, 0.0)
  mass = _mean(accept.astype(jnp.float32), valid)
  accepted = _mean(ratio, valid & accept)
  rejected = _mean(ratio, valid & ~accept)
  return {
    "kl": _mean(ratio, valid),
    "inside": accepted - jnp.log(mass / rho),
    "outside": rejected - jnp.log((1.0 - mass) / (1.0 - rho)),
    "jump": accepted - rejected,
    "mass": mass,
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
  return jnp.sqrt(variance)


def order_kept(
  log_probs: jax.Array, start: jax.Array, members: jax.Array
) -> dict[str, jax.Array]:
  """How much of the order of a class's actions survives.

  Args:
    log_probs, start: `[..., A]` of a fixed set of actions.
    members: `[..., A]` bool; pairs are taken among members only.

  Returns:
    `[...]` each: "tau" (Kendall's tau-b, NaN where all members are tied on
    one side), "inversions", "pairs", and "kept" (pairs in the same strict
    order on both sides; a tie on either counts as not kept).
  """
  chex.assert_equal_shape([log_probs, start, members])
  before, after = _signs(start, members), _signs(log_probs, members)
  same = before * after
  count = members.sum(-1)
  untied = [jnp.abs(x).sum((-1, -2)) for x in (before, after)]
  scale = jnp.sqrt(untied[0] * untied[1])
  return {
    "tau": jnp.where(
      scale > 0, same.sum((-1, -2)) / jnp.maximum(scale, 1.0), jnp.nan
    ),
    "inversions": (same < 0).sum((-1, -2)),
    "kept": (same > 0).sum((-1, -2)),
    "pairs": count * (count - 1) // 2,
  }


def within_class_kept(
  log_probs: jax.Array,
  start: jax.Array,
  accept: jax.Array,
  valid: jax.Array | None = None,
) -> jax.Array:
  """Share of pairs within a class whose order survives; ties do not.

  Args:
    log_probs, start: `[..., A]` of a fixed set of actions.
    accept: `[..., A]` bool.
    valid: `[..., A]` bool, False on padding.

  Returns:
    `[...]`; NaN where no class has two actions.
  """
  valid = _all_if_none(valid, accept)
  parts = [
    order_kept(log_probs, start, valid & side) for side in (accept, ~accept)
  ]
  kept, pairs = (sum(p[name] for p in parts) for name in ("kept", "pairs"))
  return jnp.where(pairs > 0, kept / jnp.maximum(pairs, 1), jnp.nan)


def _signs(x, members):
  """`[..., A, A]` the order of each pair of members, once; 0 elsewhere."""
  size = x.shape[-1]
  pair = members[..., :, None] & members[..., None, :]
  pair &= jnp.triu(jnp.ones((size, size), bool), 1)
  x = jnp.where(members, x, 0.0)
  return jnp.where(pair, jnp.sign(x[..., :, None] - x[..., None, :]), 0.0)


def _all_if_none(valid, like):
  if valid is None:
    return jnp.ones(like.shape, bool)
  chex.assert_equal_shape([valid, like])
  return valid


def _sum(x, where):
  return jnp.where(where, x, 0.0).sum(-1)


def _mean(x, where):
  count = where.sum(-1)
  return jnp.where(count > 0, _sum(x, where) / jnp.maximum(count, 1), jnp.nan)
