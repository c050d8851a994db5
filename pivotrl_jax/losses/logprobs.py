"""Log-probs of tokens from hidden states, and the SFT loss. Arrays only."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from pivotrl_jax.models import axes


def token_log_probs(
  hidden: jax.Array,
  unembed: jax.Array,
  targets: jax.Array,
  *,
  chunk: int,
  temperature: float = 1.0,
  lines: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target, and the entropy it was drawn at.

  The projection to the vocabulary and its log-softmax are formed for `chunk`
  rows at a time, in both passes: never `[M, V]` at once.

  Args:
    hidden: `[M, D]`, any float type.
    unembed: `[D, V]`.
    targets: `[M]` token ids.
    chunk: rows of a device at a time: on a mesh each chunk gathers the matrix
      and adds to its gradient, hence is no smaller for being shared.
    temperature: divides the logits.
    lines: of equal length that the rows are of. A chunk has a part of each,
      as they may lie on different devices.

  Returns:
    float32 `[M]` log-probs and `[M]` entropies in nats; the entropy carries
    no gradient.
  """
  chex.assert_rank([hidden, unembed, targets], [2, 2, 1])
  chex.assert_shape(targets, hidden.shape[:1])
  size = hidden.shape[0] // lines
  count = -(-size * lines // (chunk * axes.lines()))
  chunk = -(-size // count)

  def chunks(x):
    x = x.reshape(lines, size, *x.shape[1:])
    x = jnp.pad(
      x, [(0, 0), (0, count * chunk - size)] + [(0, 0)] * (x.ndim - 2)
    )
    x = x.reshape(lines, count, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0).reshape(count, lines * chunk, *x.shape[3:])

  def rows(x):
    x = jnp.moveaxis(x.reshape(count, lines, chunk), 0, 1)
    return x.reshape(lines, -1)[:, :size].reshape(-1)

  @jax.checkpoint
  def one(rows):
    states, ids = rows
    logits = jnp.dot(
      states,
      unembed.astype(states.dtype),
      preferred_element_type=jnp.float32,
    )
    return _pick(logits / temperature, ids)

  log_probs, entropy = jax.lax.map(one, (chunks(hidden), chunks(targets)))
  return rows(log_probs), rows(entropy)


@jax.custom_jvp
def _pick(scores, ids):
  """Log-probs and entropies `[M]` of ids `[M]` under scores `[M, V]`."""
  total = jax.nn.logsumexp(scores, axis=-1)
  mean = (jnp.exp(scores - total[:, None]) * scores).sum(-1)
  return _at(scores, ids) - total, total - mean


@_pick.defjvp
def _pick_jvp(primals, tangents):
  # d log p_t / d score_v = 1[v = t] - p_v as one expression: the transpose
  # of a gather is a scatter, and autodiff would keep more of `[M, V]`.
  scores, ids = primals
  log_probs, entropy = _pick(scores, ids)
  total = _at(scores, ids) - log_probs
  hit = jnp.arange(scores.shape[1]) == ids[:, None]
  slope = hit - jnp.exp(scores - total[:, None])
  return (log_probs, entropy), (
    (slope * tangents[0]).sum(-1),
    jnp.zeros_like(entropy),
  )


def _at(scores, ids):
  return jnp.take_along_axis(scores, ids[:, None], 1)[:, 0]


def sft_loss(
  log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
  """Negative log-likelihood of the demonstrated tokens (paper, eq. 1).

  Args:
    log_probs: `[..., A]` of the demonstration's tokens.
    mask: `[..., A]` weights, 0 on padding.

  Returns:
    The loss sum, and {"weight": sum of weights}.
  """
  chex.assert_equal_shape([log_probs, mask])
  loss = -(jnp.where(mask > 0, log_probs, 0.0) * mask).sum()
  return loss, {"weight": mask.sum()}
