"""Group advantages, the clipped surrogate and its KL term. Arrays only.

Losses are *sums* over action tokens, with the sums of their metrics; the
training step divides once (paper, eq. 7 and section 2).
"""

import chex
import jax
import jax.numpy as jnp

EPSILON = 1e-6


def advantages(rewards: jax.Array, *, estimator: str) -> jax.Array:
  """Advantages within groups; a group of equal rewards has none.

  Args:
    rewards: `[P, G]`, one row a pivot.
    estimator: "grpo" (eq. 7: mean and population std of the group), "loo"
      (mean and unbiased std of the *other* samples; unscaled where that std
      is 0), "rloo" (leave-one-out mean only), "dr_grpo" (group mean only).

  Returns:
    `[P, G]` float32.

  Raises:
    ValueError: an unknown estimator.
  """
  chex.assert_rank(rewards, 2)
  if estimator not in _ESTIMATORS:
    raise ValueError(
        f"advantage {estimator!r}; expected one of {sorted(_ESTIMATORS)}"
    )
  return _ESTIMATORS[estimator](rewards.astype(jnp.float32))


def _grpo(rewards):
  # Subtract first: equal rewards give exact zeros, whatever the mean rounds
  # to.
  shifted = rewards - rewards[:, :1]
  centred = shifted - shifted.mean(1, keepdims=True)
  std = jnp.sqrt((centred**2).mean(1, keepdims=True))
  return centred / (std + EPSILON)


def _dr_grpo(rewards):
  shifted = rewards - rewards[:, :1]
  return shifted - shifted.mean(1, keepdims=True)


def _rloo(rewards):
  size = rewards.shape[1]
  return _dr_grpo(rewards) * size / (size - 1)


def _loo(rewards):
  size = rewards.shape[1]
  shifted = rewards - rewards[:, :1]
  # [P, i, j]: sample j as seen from i, without i itself.
  others = ~jnp.eye(size, dtype=bool)
  seen = jnp.where(others, shifted[:, None, :], 0.0)
  mean = seen.sum(2) / (size - 1)
  spread = jnp.where(others, (seen - mean[..., None]) ** 2, 0.0).sum(2)
  std = jnp.sqrt(spread / max(size - 2, 1))
  centred = shifted - mean
  return jnp.where(std > EPSILON, centred / (std + EPSILON), centred)


_ESTIMATORS = {
    "grpo": _grpo,
    "loo": _loo,
    "rloo": _rloo,
    "dr_grpo": _dr_grpo,
}


def token_weights(mask: jax.Array, *, norm: str) -> jax.Array:
  """What each action token weighs in the loss.

  Args:
    mask: `[N, A]`, 1 on action tokens.
    norm: "token" (every token the same: `token_level_loss`), "sequence"
      (every action the same, a mean over its tokens), "constant" (Dr.GRPO:
      divided by the width A, so that length does not matter).

  Returns:
    `[N, A]` weights, 0 where the mask is 0.

  Raises:
    ValueError: an unknown norm.
  """
  chex.assert_rank(mask, 2)
  if norm == "token":
    return mask
  if norm == "sequence":
    return mask / jnp.maximum(mask.sum(1, keepdims=True), 1.0)
  if norm == "constant":
    return mask / mask.shape[1]
  raise ValueError(
      f"loss_norm {norm!r}; expected token, sequence or constant"
  )


def clipped_surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums the negated clipped surrogate over action tokens (eq. 7).

  Args:
    log_probs: `[N, A]` log pi_theta of each sampled token.
    old_log_probs: `[N, A]` the same before the first update on the batch.
    advantages: `[N]` one an action.
    mask: `[N, A]` weights of the action tokens, 0 on padding.
    clip_low, clip_high: the ratio is kept in `[1 - clip_low, 1 + clip_high]`.

  Returns:
    The loss sum, and sums by name: "clipped" (weight of clipped tokens).
  """
  ratio = _ratio(log_probs, old_log_probs, mask)
  return _surrogate(ratio, advantages, mask, clip_low, clip_high)


def sequence_surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`clipped_surrogate` with one ratio an action (GSPO, arXiv:2507.18071).

  The ratio is the geometric mean of the token ratios; its gradient reaches
  every token.
  """
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  live = mask > 0
  gap = jnp.where(live, log_probs - old_log_probs, 0.0)
  count = jnp.maximum(live.sum(1, keepdims=True), 1)
  ratio = jnp.exp(gap.sum(1, keepdims=True) / count)
  return _surrogate(
      jnp.broadcast_to(ratio, mask.shape), advantages, mask,
      clip_low, clip_high,
  )  # fmt: skip


def _ratio(log_probs, old_log_probs, mask):
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  # Select before exp, so that padding may hold anything.
  return jnp.exp(
      jnp.where(mask > 0, log_probs, 0.0)
      - jnp.where(mask > 0, old_log_probs, 0.0)
  )


def _surrogate(ratio, advantages, mask, clip_low, clip_high):
  chex.assert_shape(advantages, mask.shape[:1])
  adv = jax.lax.stop_gradient(advantages)[:, None]
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * adv
  loss = -(jnp.minimum(ratio * adv, clipped) * mask).sum()
  return loss, {"clipped": ((clipped < ratio * adv) * mask).sum()}


def kl_penalty(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums an estimate of KL(pi_theta || pi_0) over action tokens.

  With `d = log pi_theta - log pi_0` on tokens sampled from pi_theta:
  k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. k1 and k3 are unbiased in value;
  as a loss on fixed samples k1's gradient has mean zero, k2's is the one of
  the KL, and k3's is that of the reverse KL.

  Args:
    log_probs, ref_log_probs: `[N, A]`.
    mask: `[N, A]` weights.
    estimator: "k1", "k2" or "k3".

  Returns:
    The sum, and {} (no further metrics).

  Raises:
    ValueError: an unknown estimator.
  """
  chex.assert_equal_shape([log_probs, ref_log_probs, mask])
  gap = jnp.where(mask > 0, log_probs, 0.0) - jnp.where(
      mask > 0, ref_log_probs, 0.0
  )
  if estimator not in _KL:
    raise ValueError(f"kl {estimator!r}; expected one of {sorted(_KL)}")
  return (_KL[estimator](gap) * mask).sum(), {}


_KL = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * d**2,
    "k3": lambda d: jnp.expm1(-d) + d,
}


def truncated_importance_weights(
    log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: float,
    floor: float = 0.0,
) -> jax.Array:
  """min(pi_trainer / pi_sampler, cap), at least `floor`, without gradient.

  Args:
    log_probs: `[..., A]` of the sampled tokens under the trainer's policy.
    sampler_log_probs: `[..., A]` as the engine reported them.
    mask: `[..., A]`; padding gets weight 1.
    cap, floor: bounds.

  Returns:
    `[..., A]` weights.
  """
  chex.assert_equal_shape([log_probs, sampler_log_probs, mask])
  gap = jnp.where(mask > 0, log_probs, 0.0) - jnp.where(
      mask > 0, sampler_log_probs, 0.0
  )
  return jax.lax.stop_gradient(jnp.clip(jnp.exp(gap), floor, cap))
