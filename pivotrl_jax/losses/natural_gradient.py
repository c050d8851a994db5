"""Fisher-vector products, natural steps and natural norms. Arrays only.

With scores psi_i, the gradient of row i's log-prob, and advantages A_i, over
N sampled rows (paper, 3.2 and 3.4 item 7):

    g = sum_i psi_i A_i / N,   F = sum_i psi_i psi_i^T / N + damping I,

the natural direction is F^-1 g and its norm sqrt(g^T F^-1 g), at most
rms(A). With fewer rows than parameters and no damping it *is* rms(A),
whatever the scores are: damp it, or take F from other rows than g. What
training steps by takes F over *all* tokens of the vocabulary at the sampled
prefixes (`softmax_curvature`), so that no sampled score is a row of it.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

LogProbs = Callable[[Any], jax.Array]
# Hidden states `[M, D]` and the matrix `[D, V]` to logits: what a policy says
# of M tokens; see `logprobs.token_log_probs`.
Outputs = tuple[jax.Array, jax.Array]


def fisher_vector_product(
  outputs_fn: Callable[[Any], Any],
  params: Any,
  vector: Any,
  *,
  curvature: Callable[[Any, Any], Any],
) -> Any:
  """J^T C J v of a function with Jacobian J; undamped.

  One forward-mode and one reverse-mode pass; no row's score is formed.

  Args:
    outputs_fn: params -> outputs.
    params: where.
    vector: v, a tree like `params`.
    curvature: (outputs, tangents) -> cotangents: C, such as `row_curvature`
      or `softmax_curvature`.

  Returns:
    A tree like `params`.
  """
  chex.assert_trees_all_equal_shapes(params, vector)
  outputs, push = jax.linearize(outputs_fn, params)
  along = curvature(outputs, push(vector))
  return jax.linear_transpose(push, vector)(along)[0]


def row_curvature(
  log_probs: jax.Array, along: jax.Array, *, weights: jax.Array | None = None
) -> jax.Array:
  """C of the empirical Fisher matrix sum_i w_i psi_i psi_i^T / sum_i w_i.

  Args:
    log_probs, along: `[N]` of sampled rows, and their tangents.
    weights: `[N]` what each row counts, 0 on padding; None counts all alike.
  """
  chex.assert_rank(log_probs, 1)
  if weights is None:
    weights = jnp.ones_like(log_probs)
  chex.assert_equal_shape([log_probs, along, weights])
  share = weights / jnp.maximum(weights.sum(), 1e-9)
  return jnp.where(weights > 0, along, 0.0) * share


def softmax_curvature(
  outputs: Outputs,
  along: Outputs,
  *,
  weights: jax.Array,
  chunk: int,
  temperature: float = 1.0,
) -> Outputs:
  """C of the Fisher matrix of softmaxes over the whole vocabulary, summed.

  F = sum_t w_t E_{v ~ p_t}[psi_tv psi_tv^T], exactly: the Hessian of
  `token_kl`, and no sampled token in it. Over the tokens of sampled actions
  it estimates the Fisher matrix of actions without bias, for scores of
  different tokens of one action are uncorrelated.

  Args:
    outputs, along: hidden states `[M, D]` and `[D, V]`; their tangents.
    weights: `[M]`, 0 on padding.
    chunk: rows of logits that are formed at a time.
    temperature: divides the logits.

  Returns:
    Cotangents like `outputs`.
  """

  def one(total, rows):
    (states, d_states, weight), (unembed, d_unembed) = rows, matrices
    logits = _logits(states, unembed) / temperature
    d_logits = _logits(d_states, unembed) + _logits(states, d_unembed)
    probs = jax.nn.softmax(logits)
    d_logits -= (probs * d_logits).sum(-1, keepdims=True)
    cot = probs * d_logits * (weight / temperature**2)[:, None]
    back = _logits(cot, unembed.T).astype(states.dtype)
    return total + _logits(states.T, cot), back

  matrices = outputs[1], along[1]
  rows = _chunks((outputs[0], along[0], weights), chunk)
  total, back = jax.lax.scan(
    one, jnp.zeros(outputs[1].shape, jnp.float32), rows
  )
  size = len(weights)
  back = back.reshape(-1, back.shape[-1])[:size]
  return back, total.astype(outputs[1].dtype)


def token_kl(
  before: Outputs, after: Outputs, *, chunk: int, temperature: float = 1.0
) -> jax.Array:
  """KL(before || after) `[M]` in nats of each token's whole distribution.

  Args:
    before, after: hidden states `[M, D]` and `[D, V]`.
    chunk: rows of logits that are formed at a time.
    temperature: divides the logits.
  """
  old_matrix, new_matrix = before[1], after[1]

  def one(rows):
    old, new = (
      jax.nn.log_softmax(_logits(x, matrix) / temperature)
      for x, matrix in zip(rows, (old_matrix, new_matrix), strict=True)
    )
    return (jnp.exp(old) * (old - new)).sum(-1)

  found = jax.lax.map(one, _chunks((before[0], after[0]), chunk))
  return found.reshape(-1)[: len(before[0])]


def _logits(states, unembed):
  return jnp.dot(
    states, unembed.astype(states.dtype), preferred_element_type=jnp.float32
  )


def _chunks(rows, chunk):
  """Arrays `[M, ...]` as `[count, at most chunk, ...]`, padded with zeros."""
  size = len(rows[0])
  count = -(-size // chunk)
  each = -(-size // count)

  def split(x):
    widths = [(0, count * each - size)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths).reshape(count, each, *x.shape[1:])

  return jax.tree.map(split, rows)


def natural_direction(
  grads: Any,
  fvp: Callable[[Any], Any],
  *,
  damping: float,
  iterations: int,
  relative: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
  """(F + damping I)^-1 g by conjugate gradients on trees.

  Own, not `jax.scipy.sparse.linalg.cg`: F is in the program once, not three
  times, and its first product with g gives the unit of a relative damping.

  Args:
    grads: g.
    fvp: v -> F v, undamped.
    damping: added to F's diagonal.
    iterations: most CG steps, less where the residual has fallen to 1e-5 of
      g. From zero, every iterate x has x^T (F + damping I) x = g^T x, so a
      direction cut short still has an exact (smaller) norm.
    relative: the damping is in units of F's curvature along the gradient,
      g^T F g / g^T g, so that it means the same in any model.

  Returns:
    The direction, exactly 0 where g is; and its "norm" sqrt(g^T x) in the
    damped metric and the "damping" in absolute terms.
  """
  start = optax.tree.vdot(grads, grads)

  def going_on(carry):
    count, square = carry[:2]
    return (count < iterations) & (square > 1e-10 * start)

  def body(carry):
    count, square, ridge, x, residual, along = carry
    product = fvp(along)
    if relative:
      curvature = optax.tree.vdot(along, product) / square
      ridge = jnp.where(count == 0, damping * curvature, ridge)
    product = jax.tree.map(lambda f, v: f + ridge * v, product, along)
    length = square / optax.tree.vdot(along, product)
    x = jax.tree.map(lambda x, v: x + length * v, x, along)
    residual = jax.tree.map(lambda r, f: r - length * f, residual, product)
    now = optax.tree.vdot(residual, residual)
    along = jax.tree.map(lambda r, v: r + (now / square) * v, residual, along)
    return count + 1, now, ridge, x, residual, along

  zeros = jax.tree.map(jnp.zeros_like, grads)
  ridge = jnp.float32(0.0 if relative else damping)
  _, _, ridge, direction, _, _ = jax.lax.while_loop(
    going_on, body, (0, start, ridge, zeros, grads, grads)
  )
  square = optax.tree.vdot(grads, direction)
  norm = jnp.sqrt(jnp.maximum(square, 0.0))
  return direction, {"norm": norm, "damping": ridge}


def natural_step(
  grads: Any,
  fvp: Callable[[Any], Any],
  *,
  damping: float,
  max_kl: float,
  iterations: int,
  learning_rate: float = 1.0,
  relative: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
  """The damped natural-gradient step, inside a trust region of the KL.

  The step is `learning_rate` times the natural direction, shortened where
  the quadratic model of the KL, step^T (F + damping I) step / 2, passes
  `max_kl`. It is never lengthened: a batch with little signal moves little,
  one without does not move.

  Args:
    grads: of the *loss*, a tree of float32.
    fvp, damping, iterations, relative: see `natural_direction`.
    max_kl: trust region, nats per row.
    learning_rate: of the unshortened step.

  Returns:
    Updates for `optax.apply_updates`, and "natural_norm", "natural_damping",
    "natural_kl" (of the step, by the model without damping) and
    "natural_scale" (what the direction was multiplied by).
  """
  direction, found = natural_direction(
    grads, fvp, damping=damping, iterations=iterations, relative=relative
  )
  norm, ridge = found["norm"], found["damping"]
  longest = jnp.sqrt(2.0 * max_kl) / jnp.maximum(norm, 1e-30)
  scale = jnp.minimum(learning_rate, longest)
  undamped = norm**2 - ridge * optax.tree.vdot(direction, direction)
  return jax.tree.map(lambda x: -scale * x, direction), {
    "natural_norm": norm,
    "natural_damping": ridge,
    "natural_kl": 0.5 * scale**2 * jnp.maximum(undamped, 0.0),
    "natural_scale": scale,
  }


def back_track(
  updates: Any,
  measured_kl: Callable[[Any], jax.Array],
  *,
  max_kl: float,
  tries: int,
) -> tuple[Any, dict[str, jax.Array]]:
  """Shortens a step until the KL it *measures* is inside the trust region.

  The KL is quadratic in a small step, so each try goes to nine tenths of
  where it would be `max_kl`, between a tenth and nine tenths of the last.

  Args:
    updates: the step.
    measured_kl: updates -> KL in nats.
    max_kl: trust region.
    tries: most further measurements; if none is inside, no step is taken.

  Returns:
    The step, and "natural_kl_measured" and "natural_share" (how much of the
    step is left).
  """

  def outside(carry):
    count, _, kl = carry
    return ~(kl <= max_kl) & (count <= tries)  # NaN is outside.

  def shorter(carry):
    count, share, kl = carry
    factor = jnp.clip(0.9 * jnp.sqrt(max_kl / kl), 0.1, 0.9)
    factor = jnp.where(jnp.isfinite(kl), factor, 0.1)
    share *= jnp.where(count == 0, 1.0, factor)
    kl = measured_kl(jax.tree.map(lambda x: share * x, updates))
    return count + 1, share, kl

  _, share, kl = jax.lax.while_loop(
    outside, shorter, (0, jnp.float32(1.0), jnp.float32(jnp.inf))
  )
  inside = kl <= max_kl
  step = jax.tree.map(lambda x: jnp.where(inside, share * x, 0.0), updates)
  return step, {
    "natural_kl_measured": jnp.where(inside, kl, 0.0),
    "natural_share": jnp.where(inside, share, 0.0),
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
  log_probs, push = jax.linearize(log_prob_fn, params)
  chex.assert_rank(log_probs, 1)

  def one(direction_key):
    signs = [
      jax.random.rademacher(k, x.shape, x.dtype)
      for k, x in zip(
        jax.random.split(direction_key, len(leaves)), leaves, strict=True
      )
    ]
    return push(jax.tree.unflatten(treedef, signs)).astype(jnp.float32)

  return jax.lax.map(one, jax.random.split(key, num_directions)).T


def gram_norms(
  projections: jax.Array,
  advantages: jax.Array,
  *,
  damping: float | jax.Array,
  valid: jax.Array | None = None,
  sketched: bool = True,
) -> dict[str, jax.Array]:
  """A group's natural-gradient norm from the Gram matrix of its scores.

  With K_ij = psi_i . psi_j and F from the same N rows,
  g^T F^-1 g = A^T K (K + N damping I)^-1 A / N: an eigenvalue problem of size
  N. A K of few random directions has too low a rank and would give too small
  a norm; `_ridge_of_sketch` makes up for it.

  Args:
    projections: `[..., N, R]` of `score_projections`; or the scores
      themselves times sqrt(R), not `sketched`.
    advantages: `[..., N]`; with A = r - mean(r) the prediction is the
      reward's std, as in Theorem 3.2.
    damping: `[...]`, > 0, on F's diagonal (in units of squared scores).
    valid: `[..., N]` bool, False on padding rows.
    sketched: whether the projections are along random directions.

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
  directions = projections.shape[-1]
  gram = scores @ jnp.swapaxes(scores, -1, -2) / directions
  values, vectors = jnp.linalg.eigh(gram)
  values = jnp.maximum(values, 0.0)
  ridge = count * damping
  if sketched:
    ridge = _ridge_of_sketch(values, ridge, directions)
  along = (adv[..., None] * vectors).sum(-2)
  square = (along**2 * _kept(values, ridge)).sum(-1) / count
  norm = jnp.sqrt(square)
  predicted = jnp.sqrt((adv**2).sum(-1) / count)
  return {
    "norm": norm,
    "predicted": predicted,
    "captured": share_captured(norm, predicted),
  }


def _kept(values, ridge):
  """What a ridge `[...]` leaves of each eigenvalue's share, `[..., N]`."""
  total = values + ridge[..., None]
  return jnp.where(total > 0, values / jnp.where(total > 0, total, 1.0), 0.0)


def _ridge_of_sketch(values, ridge, directions):
  """The ridge that does to a sketched Gram matrix what `ridge` does to it.

  To first order sketching adds a ridge of its own: a sketch from R directions
  under mu acts as the whole matrix under kappa, mu = kappa (1 - df(mu) / R),
  where df = tr K (K + mu)^-1 (LeJeune et al., arXiv:2211.03751). Here kappa is
  given and mu, in [0, kappa], is found by bisection.
  """

  def halve(_, bounds):
    low, high = bounds
    middle = 0.5 * (low + high)
    freedom = _kept(values, middle).sum(-1)
    over = middle > ridge * (1.0 - freedom / directions)
    return jnp.where(over, low, middle), jnp.where(over, middle, high)

  bounds = jnp.zeros_like(ridge), ridge
  return jax.lax.fori_loop(0, 40, halve, bounds)[1]


def mean_curvature(
  projections: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
  """`[...]` mean eigenvalue tr(K) / N^2 of the N that F has, without bias.

  The unit of a damping that means the same in any model and group.

  Args:
    projections: `[..., N, R]` of `score_projections`.
    valid: `[..., N]` bool.
  """
  if valid is None:
    valid = jnp.ones(projections.shape[:-1], bool)
  squares = jnp.where(valid, (projections**2).mean(-1), 0.0).sum(-1)
  return squares / jnp.maximum(valid.sum(-1), 1) ** 2


def share_captured(norm: jax.Array, predicted: jax.Array) -> jax.Array:
  """kappa = norm / rms(A); 0 where there is no signal to capture."""
  return jnp.where(
    predicted > 0, norm / jnp.where(predicted > 0, predicted, 1.0), 0.0
  )
