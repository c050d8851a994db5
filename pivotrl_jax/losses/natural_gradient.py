"""Fisher-vector products, natural steps and natural norms. Arrays only.

With scores psi_i, the gradient of row i's log-prob, and advantages A_i, over
N sampled rows (paper, 3.2 and 3.4 item 7):

    g = sum_i psi_i A_i / N,   F = sum_i psi_i psi_i^T / N + damping I,

the natural direction is F^-1 g and its norm sqrt(g^T F^-1 g), at most
rms(A). With fewer rows than parameters and no damping it *is* rms(A),
whatever the scores are: damp it, or take F from other rows than g.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import optax

LogProbs = Callable[[Any], jax.Array]


def fisher_vector_product(
  log_prob_fn: LogProbs,
  params: Any,
  vector: Any,
  *,
  weights: jax.Array | None = None,
) -> Any:
  """F v of the empirical Fisher matrix of sampled rows, undamped.

  One forward-mode and one reverse-mode pass; no row's score is formed.

  Args:
    log_prob_fn: params -> `[N]` log-probs, one a row.
    params: where.
    vector: v, a tree like `params`.
    weights: `[N]` what each row counts, 0 on padding; None counts all alike.

  Returns:
    sum_i w_i psi_i (psi_i . v) / sum_i w_i, a tree like `params`.
  """
  chex.assert_trees_all_equal_shapes(params, vector)
  log_probs, pullback = jax.vjp(log_prob_fn, params)
  chex.assert_rank(log_probs, 1)
  if weights is None:
    weights = jnp.ones_like(log_probs)
  chex.assert_equal_shape([log_probs, weights])
  _, along = jax.jvp(log_prob_fn, (params,), (vector,))
  share = weights / jnp.maximum(weights.sum(), 1e-9)
  return pullback(jnp.where(weights > 0, along, 0.0) * share)[0]


def natural_direction(
  grads: Any,
  fvp: Callable[[Any], Any],
  *,
  damping: float,
  iterations: int,
) -> tuple[Any, jax.Array]:
  """(F + damping I)^-1 g by conjugate gradients on trees.

  Args:
    grads: g.
    fvp: v -> F v, undamped.
    damping: added to F's diagonal.
    iterations: most CG steps. From zero, every iterate x has
      x^T (F + damping I) x = g^T x, so a direction cut short still has an
      exact (smaller) norm.

  Returns:
    The direction and its norm sqrt(g^T x) in the damped metric.
  """
  direction, _ = jax.scipy.sparse.linalg.cg(
    lambda v: jax.tree.map(lambda f, x: f + damping * x, fvp(v), v),
    grads,
    maxiter=iterations,
  )
  square = optax.tree.vdot(grads, direction)
  return direction, jnp.sqrt(jnp.maximum(square, 0.0))


def natural_step(
  grads: Any,
  fvp: Callable[[Any], Any],
  *,
  damping: float,
  max_kl: float,
  iterations: int,
  learning_rate: float = 1.0,
) -> tuple[Any, dict[str, jax.Array]]:
  """The damped natural-gradient step, inside a trust region of the KL.

  The step is `learning_rate` times the natural direction, shortened where
  the quadratic model of the KL, step^T (F + damping I) step / 2, passes
  `max_kl`. It is never lengthened: a batch with little signal moves little,
  one without does not move.

  Args:
    grads: of the *loss*, a tree of float32.
    fvp, damping, iterations: see `natural_direction`.
    max_kl: trust region, nats per row.
    learning_rate: of the unshortened step.

  Returns:
    Updates for `optax.apply_updates`, and "natural_norm", "natural_kl" (of
    the step, by the model without damping) and "natural_scale" (what the
    direction was multiplied by).
  """
  direction, norm = natural_direction(
    grads, fvp, damping=damping, iterations=iterations
  )
  longest = jnp.sqrt(2.0 * max_kl) / jnp.maximum(norm, 1e-30)
  scale = jnp.minimum(learning_rate, longest)
  undamped = norm**2 - damping * optax.tree.vdot(direction, direction)
  return jax.tree.map(lambda x: -scale * x, direction), {
    "natural_norm": norm,
    "natural_kl": 0.5 * scale**2 * jnp.maximum(undamped, 0.0),
    "natural_scale": scale,
  }


def score_projections(
  log_prob_fn: LogProbs, params: Any, key: jax.Array, num_directions: int
) -> jax.Array:
  """Every row's score along random directions, by forward mode alone.

  Directions have independent signs, so `projections @ projections.T / R` is
  an unbiased estimate of the Gram matrix psi_i . psi_j of the scores.

  Args:
    log_prob_fn: params -> `[N]` log-probs, one a row.
    params: where.
    key: of the directions.
    num_directions: R.

  Returns:
    `[N, R]` float32: psi_i . v_r.
  """
  leaves, treedef = jax.tree.flatten(params)

  def one(direction_key):
    signs = [
      jax.random.rademacher(k, x.shape, x.dtype)
      for k, x in zip(
        jax.random.split(direction_key, len(leaves)), leaves, strict=True
      )
    ]
    along = jax.tree.unflatten(treedef, signs)
    _, tangent = jax.jvp(log_prob_fn, (params,), (along,))
    chex.assert_rank(tangent, 1)
    return tangent.astype(jnp.float32)

  return jax.lax.map(one, jax.random.split(key, num_directions)).T


def gram_norms(
  projections: jax.Array,
  advantages: jax.Array,
  *,
  damping: float,
  valid: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """A group's natural-gradient norm from the Gram matrix of its scores.

  With K_ij = psi_i . psi_j and F from the same N rows,
  g^T F^-1 g = A^T K (K + N damping I)^-1 A / N: a solve of size N.

  Args:
    projections: `[..., N, R]` of `score_projections`; or the scores
      themselves times sqrt(R).
    advantages: `[..., N]`; with A = r - mean(r) the prediction is the
      reward's std, as in Theorem 3.2.
    damping: > 0, on F's diagonal (in units of squared scores).
    valid: `[..., N]` bool, False on padding rows.

  Returns:
    `[...]` each: "norm"; "predicted", the paper's signal rms(A), which the
    norm reaches if scores can express every A; "captured", kappa = norm /
    predicted in [0, 1], 0 where all advantages are 0.
  """
  chex.assert_equal_shape_prefix([projections, advantages], advantages.ndim)
  chex.assert_rank(projections, advantages.ndim + 1)
  if valid is None:
    valid = jnp.ones(advantages.shape, bool)
  chex.assert_equal_shape([advantages, valid])
  scores = jnp.where(valid[..., None], projections, 0.0)
  adv = jnp.where(valid, advantages, 0.0)
  count = jnp.maximum(valid.sum(-1), 1).astype(jnp.float32)
  gram = scores @ jnp.swapaxes(scores, -1, -2) / projections.shape[-1]
  ridge = (count * damping)[..., None, None] * jnp.eye(adv.shape[-1])
  solved = jnp.linalg.solve(gram + ridge, adv[..., None])
  square = (adv[..., None, :] @ gram @ solved)[..., 0, 0] / count
  norm = jnp.sqrt(jnp.maximum(square, 0.0))
  predicted = jnp.sqrt((adv**2).sum(-1) / count)
  return {
    "norm": norm,
    "predicted": predicted,
    "captured": share_captured(norm, predicted),
  }


def share_captured(norm: jax.Array, predicted: jax.Array) -> jax.Array:
  """kappa = norm / rms(A); 0 where there is no signal to capture."""
  return jnp.where(
    predicted > 0, norm / jnp.where(predicted > 0, predicted, 1.0), 0.0
  )
