"""The training step: loss sums over micro-batches, one division, one update.

Pure. A loss function sees the parameters and one micro-batch of trees and
returns a *sum* with the sums of its metrics; here they are accumulated,
summed over devices and divided once by the summed weight. Hence every split
of a batch, in time or over devices, gives one gradient.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pivotrl_jax.data import batches
from pivotrl_jax.losses import grpo
from pivotrl_jax.losses import logprobs
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import state as state_lib


def train_step(
  state: state_lib.TrainState,
  batch: batches.TrainBatch,
  *,
  loss_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  axis_name: str | None = None,
) -> tuple[state_lib.TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
  """One optimizer update from all micro-batches of `batch`.

  Args:
    state: before the step.
    batch: arrays `[M, B, ...]`.
    loss_fn: `(params, micro_batch) -> (loss sum, (metric sums, rows))`, with
      "weight" among the sums and `rows` a dict of per-branch arrays `[B, N]`.
    tx: the optimizer.
    axis_name: the pmap axis to sum over, if any.

  Returns:
    The next state; metrics, each a sum divided by "weight", with "grad_norm"
    and "update_norm"; and rows `[M, B, N]` under the old parameters.
  """

  def accumulate(carry, micro):
    grad, (sums, rows) = jax.grad(loss_fn, has_aux=True)(state.params, micro)
    return jax.tree.map(jnp.add, carry, (grad, sums)), rows

  shapes = jax.eval_shape(
    lambda micro: jax.grad(loss_fn, has_aux=True)(state.params, micro),
    jax.tree.map(lambda x: x[0], batch),
  )
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0])
  )
  (grads, sums), rows = jax.lax.scan(accumulate, zeros, batch)
  if axis_name is not None:
    grads, sums = jax.lax.psum((grads, sums), axis_name)
  weight = jnp.maximum(sums.pop("weight"), 1e-9)
  grads = jax.tree.map(lambda x: x / weight, grads)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  metrics = {name: value / weight for name, value in sums.items()}
  metrics["grad_norm"] = optax.tree.norm(grads)
  metrics["update_norm"] = optax.tree.norm(updates)
  params = optax.apply_updates(state.params, updates)
  return (
    state_lib.TrainState(state.step + 1, params, opt_state),
    metrics,
    rows,
  )


def policy_log_probs(
  model: qwen3.Qwen3,
  params: Any,
  micro: batches.TrainBatch,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Log-probs and entropies `[B, N, A]` of the action tokens of trees."""
  branch, visible = branch_inputs(micro.trunks, micro.attach, micro.actions)
  hidden = model.apply({"params": params}, micro.trunks, branch, visible)
  log_probs, entropy = logprobs.token_log_probs(
    hidden.reshape(-1, hidden.shape[-1]),
    qwen3.unembedding(params, model.config),
    micro.actions.reshape(-1),
    chunk=chunk,
    temperature=temperature,
  )
  shape = micro.actions.shape
  return log_probs.reshape(shape), entropy.reshape(shape)


def branch_inputs(
  trunks: jax.Array, attach: jax.Array, actions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Shifts actions `[B, N, A]` right by the last prompt token.

  Returns:
    The branch's inputs `[B, N, A]`, whose outputs predict `actions`, and how
    many trunk tokens `[B, N]` stand before them.
  """
  last = jnp.take_along_axis(trunks, attach - 1, axis=1)
  branch = jnp.concatenate([last[..., None], actions[..., :-1]], axis=-1)
  return branch, attach - 1


def sft_loss(params, micro, *, log_probs_fn):
  """Negative log-likelihood of the demonstrations (paper, eq. 1)."""
  log_probs, entropy = log_probs_fn(params, micro)
  loss, sums = logprobs.sft_loss(log_probs, micro.mask)
  sums = sums | {"entropy": _masked_sum(entropy, micro.mask), "loss": loss}
  return loss, (sums, {"log_prob": _masked_rows(log_probs, micro.mask)})


def grpo_loss(
  params,
  micro,
  *,
  log_probs_fn,
  clip_low: float,
  clip_high: float,
  kl: str,
  kl_coef: float,
  loss_norm: str,
  importance_cap: float,
  importance_floor: float,
):
  """The clipped surrogate and its KL term (paper, eq. 7).

  Without `micro.old_log_probs` the step is the first on its batch: the old
  policy is the current one, its ratio 1.
  """
  log_probs, entropy = log_probs_fn(params, micro)
  old = micro.old_log_probs
  if old is None:
    old = jax.lax.stop_gradient(log_probs)
  flat = functools.partial(_flatten, width=log_probs.shape[-1])
  weights = micro.mask
  sums = {"mismatch": _masked_sum(
      jnp.abs(old - micro.sampler_log_probs), micro.mask
  )}  # fmt: skip
  if importance_cap:
    weights = weights * grpo.truncated_importance_weights(
        old, micro.sampler_log_probs, micro.mask,
        cap=importance_cap, floor=importance_floor,
    )  # fmt: skip
  surrogate, parts = grpo.clipped_surrogate(
      flat(log_probs), flat(old), micro.advantages.reshape(-1),
      flat(weights), clip_low=clip_low, clip_high=clip_high,
  )  # fmt: skip
  # The divisor counts actions or tokens, whatever importance weights say.
  sums |= parts | {"weight": grpo.divisor(flat(micro.mask), norm=loss_norm)}
  loss = surrogate
  if micro.ref_log_probs is not None:
    penalty, _ = grpo.kl_penalty(
        flat(log_probs), flat(micro.ref_log_probs), flat(micro.mask),
        estimator=kl,
    )  # fmt: skip
    sums["kl"] = penalty
    if kl_coef:
      loss = loss + kl_coef * penalty
  sums |= {"loss": loss, "entropy": _masked_sum(entropy, micro.mask)}
  return loss, (sums, {"log_prob": _masked_rows(log_probs, micro.mask)})


def _flatten(x, *, width):
  return x.reshape(-1, width)


def _masked_sum(x, mask):
  return (jnp.where(mask > 0, x, 0.0) * mask).sum()


def _masked_rows(x, mask):
  return jax.lax.stop_gradient(jnp.where(mask > 0, x, 0.0).sum(-1))
