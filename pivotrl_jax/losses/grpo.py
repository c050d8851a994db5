"""Group advantages, the clipped surrogate and its KL term. Arrays only.

Losses are *sums* over action tokens, with the sums of their metrics; the
training step divides once (paper, eq. 7 and section 2).
"""

import chex
import jax
import jax.numpy as jnp

EPSILON = 1e-6
MIN_STD = 1e-3


def advantages(
  rewards: jax.Array,
  *,
  estimator: str,
  valid: jax.Array | None = None,
  min_std: float = MIN_STD,
) -> jax.Array:
  """Advantages within groups; a group of (nearly) equal rewards has none.

  "loo" takes the mean m and the unbiased std s of the *other* samples:
  A = (r - m) / s where s counts, the paper's unscaled r - m where s is 0, and
  between the two a divisor that goes evenly from 1 to `min_std`. |A| is at most
  sqrt(n - 1) of n samples, the bound of eq. 7's own, which no group of
  successes and failures exceeds. So rewards that draw together never blow A
  up, and it has one limit where they meet.

  Args:
    rewards: `[P, G]`, one row a pivot.
    estimator: "grpo" (eq. 7: mean and population std of the group), "loo"
      (see above), "rloo" (leave-one-out mean only), "dr_grpo" (group mean
      only).
    valid: `[P, G]` bool, which samples there are; None means all. The others
      may hold anything, count for nothing and get 0.
    min_std: a group whose population std is not above it has no advantage.

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
  if valid is None:
    valid = jnp.ones(rewards.shape, bool)
  chex.assert_equal_shape([rewards, valid])
  rewards = jnp.where(valid, rewards.astype(jnp.float32), 0.0)
  # Shifted by a reward of the group, so that equal rewards give exact zeros
  # whatever their mean would round to.
  first = jnp.take_along_axis(rewards, valid.argmax(1, keepdims=True), 1)
  shifted = jnp.where(valid, rewards - first, 0.0)
  counts = valid & (_std(shifted, valid) > min_std)
  found = _ESTIMATORS[estimator](shifted, valid, max(min_std, EPSILON))
  return jnp.where(counts, found, 0.0)


def _std(rewards, valid):
  count = jnp.maximum(valid.sum(1, keepdims=True), 1)
  centred = jnp.where(valid, _dr_grpo(rewards, valid, 0.0), 0.0)
  return jnp.sqrt((centred**2).sum(1, keepdims=True) / count)


def _dr_grpo(rewards, valid, _):
  count = jnp.maximum(valid.sum(1, keepdims=True), 1)
  return rewards - rewards.sum(1, keepdims=True) / count


def _grpo(rewards, valid, min_std):
  centred = _dr_grpo(rewards, valid, min_std)
  return centred / (_std(rewards, valid) + EPSILON)


def _rloo(rewards, valid, min_std):
  # r_i - mean of the others = (r_i - mean of all) n / (n - 1).
  count = valid.sum(1, keepdims=True)
  centred = _dr_grpo(rewards, valid, min_std)
  return centred * count / jnp.maximum(count - 1, 1)


def _loo(rewards, valid, min_std):
  # [P, i, j]: sample j as seen from i, without i itself; shifted by one of
  # them, so that equal ones have a std of exactly 0.
  others = valid[:, None, :] & ~jnp.eye(rewards.shape[1], dtype=bool)
  count = others.sum(2)
  one = jnp.take_along_axis(rewards, others.argmax(2), 1)
  seen = jnp.where(others, rewards[:, None, :] - one[..., None], 0.0)
  mean = seen.sum(2) / jnp.maximum(count, 1)
  spread = jnp.where(others, (seen - mean[..., None]) ** 2, 0.0).sum(2)
  std = jnp.sqrt(spread / jnp.maximum(count - 1, 1))
  share = jnp.minimum(std / min_std, 1.0)
  divisor = 1.0 + share * (jnp.maximum(std, min_std) + EPSILON - 1.0)
  bound = jnp.sqrt(jnp.maximum(valid.sum(1, keepdims=True) - 1.0, 0.0))
  return jnp.clip((rewards - one - mean) / divisor, -bound, bound)


_ESTIMATORS = {
  "grpo": _grpo,
  "loo": _loo,
  "rloo": _rloo,
  "dr_grpo": _dr_grpo,
}


def token_weights(
  mask: jax.Array, *, norm: str, width: int | None = None
) -> jax.Array:
  """What each action token weighs in the loss; `divisor` goes with it.

  Args:
    mask: `[N, A]`, 1 on action tokens.
    norm: "token" (every token the same: `token_level_loss`), "sequence"
      (every action the same, a mean over its tokens), "constant" (Dr.GRPO,
      arXiv:2503.20783: over `width`, so that a token weighs the same in a
      short and in a long action *and* in any batch).
    width: of "constant"; the most tokens of an action, A where None.

  Returns:
    `[N, A]` weights, 0 where the mask is 0.

  Raises:
    ValueError: an unknown norm.
  """
  chex.assert_rank(mask, 2)
  _check_norm(norm)
  if norm == "token":
    return mask
  if norm == "sequence":
    return mask / jnp.maximum(mask.sum(1, keepdims=True), 1.0)
  return mask / (width or mask.shape[1])


def divisor(weights: jax.Array, *, norm: str) -> jax.Array:
  """What a loss sum over `token_weights` is divided by, itself a sum.

  The summed weight for "token"; the count of actions for "sequence" (where
  the two agree) and "constant" (where dividing by the summed weight would
  undo the constant and give "token" again).

  Args:
    weights: `[..., A]` of `token_weights`, 0 on padding.
    norm: as there.

  Raises:
    ValueError: an unknown norm.
  """
  _check_norm(norm)
  if norm == "token":
    return weights.sum()
  return (weights > 0).any(-1).sum(dtype=jnp.float32)


def _check_norm(norm):
  if norm not in ("token", "sequence", "constant"):
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
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  ratio = _exp(_gap(log_probs, old_log_probs, mask))
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
  count = jnp.maximum(live.sum(1, keepdims=True), 1)
  gap = _gap(log_probs, old_log_probs, mask).sum(1, keepdims=True) / count
  return _surrogate(
      jnp.broadcast_to(_exp(gap), mask.shape), advantages, mask,
      clip_low, clip_high,
  )  # fmt: skip


def _gap(log_probs, other_log_probs, mask):
  # Select before anything is done to it: padding may hold NaN.
  live = mask > 0
  return jnp.where(live, log_probs, 0.0) - jnp.where(live, other_log_probs, 0.0)


def _exp(gap):
  # e^30 is far beyond any clip range; an infinity times an advantage of 0
  # would be NaN.
  return jnp.exp(jnp.clip(gap, -30.0, 30.0))


def _surrogate(ratio, advantages, mask, clip_low, clip_high):
  chex.assert_shape(advantages, mask.shape[:1])
  adv = jnp.where((mask > 0).any(1), jax.lax.stop_gradient(advantages), 0.0)
  adv = adv[:, None]
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

  With d = log pi_theta - log pi_0 on tokens sampled from pi_theta: k1 = d,
  k2 = d^2 / 2, k3 = exp(-d) - 1 + d. In value k1 and k3 are unbiased (k3 is
  never negative, and steadier), k2 is biased. As a *loss* the samples are
  fixed, and what is descended in the mean is
    k1: nothing; E[grad d] = E[grad log pi_theta] = 0, only noise is left;
    k2: KL(pi_theta || pi_0), as E[d grad log pi_theta] is its gradient;
    k3: KL(pi_0 || pi_theta), as E[(1 - pi_0 / pi_theta) grad log pi_theta]
        = -E_{pi_0}[grad log pi_theta]; the two KLs agree near pi_0.

  Args:
    log_probs, ref_log_probs: `[N, A]`.
    mask: `[N, A]` weights.
    estimator: "k1", "k2" or "k3".

  Returns:
    The sum, and {} (no metrics of its own).

  Raises:
    ValueError: an unknown estimator.
  """
  chex.assert_equal_shape([log_probs, ref_log_probs, mask])
  if estimator not in _KL:
    raise ValueError(f"kl {estimator!r}; expected one of {sorted(_KL)}")
  gap = _gap(log_probs, ref_log_probs, mask)
  return (_KL[estimator](gap) * mask).sum(), {}


_KL = {
  "k1": lambda d: d,
  "k2": lambda d: 0.5 * d**2,
  # Bounded for the reason given at `_exp`.
  "k3": lambda d: jnp.expm1(jnp.clip(-d, -30.0, 30.0)) + d,
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
  ratio = jnp.exp(_gap(log_probs, sampler_log_probs, mask))
  weights = jnp.where(mask > 0, jnp.clip(ratio, floor, cap), 1.0)
  return jax.lax.stop_gradient(weights)
