"""Natural-gradient steps, and scores along random directions. Pure.

Both go through the trie compute of `step.py`, take the same arguments as
`step.train_step` and return what it returns: the wrappers of `parallel.py`
spread them as they are.

The Fisher matrix is that of tokens: at the prefixes that the policy itself
sampled, over the whole vocabulary. Its sum over an action's tokens estimates
the action's without bias and with far less noise than one row an action; it
is the Hessian of the KL that the trust region is measured by; and as no
sampled token is in it, it is apart from the gradient's rows even on the same
prefixes (paper, 3.4 item 7: rows of one's own give rms(A) whatever they are).
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from pivotrl_jax.data import batches
from pivotrl_jax.losses import natural_gradient
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib


@flax.struct.dataclass
class NaturalBatch:
  """The rows of the gradient, and those whose prefixes make the Fisher matrix.

  The second are a part of the first, packed for themselves: a Fisher-vector
  product costs more than a gradient, and a step takes several.
  """

  rows: batches.TrainBatch
  fisher: batches.TrainBatch


def train_step(
  state: state_lib.TrainState,
  batch: NaturalBatch,
  *,
  loss_fn: Callable[..., Any],
  model: qwen3.Qwen3,
  chunk: int,
  temperature: float,
  learning_rate: float,
  damping: float,
  iterations: int,
  max_kl: float,
  tries: int,
  keys_fn: Callable[..., Any] | None = None,
  axis_name: str | None = None,
  balance: float = 0.0,
) -> tuple[state_lib.TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
  """One natural-gradient step from all micro-batches of `batch`.

  Args:
    state: before the step; its optimizer state stays as it is.
    batch: arrays `[M, B, ...]`.
    loss_fn: as `step.train_step` takes it.
    model: the policy, by a body of attention that has a forward mode.
    chunk: rows projected to the vocabulary at a time.
    temperature: of the policy that samples.
    learning_rate: of the natural direction, before the trust region.
    damping: as a share of F's curvature along the gradient.
    iterations: most CG steps.
    max_kl: trust region, nats a token: the mean over action tokens, by their
      weights in the loss.
    tries: most shorter steps that are tried where the measured KL is larger.
    keys_fn, axis_name, balance: see `step.gradients`.

  Returns:
    What `step.train_step` does; among the metrics those of
    `natural_gradient.natural_step` and `back_track`.
  """
  params = state.params
  grads, metrics, rows = step_lib.gradients(
    params, batch.rows, loss_fn=loss_fn, keys_fn=keys_fn,
    axis_name=axis_name, balance=balance,
  )  # fmt: skip
  knobs = {"model": model, "chunk": chunk, "temperature": temperature}
  knobs |= {"axis_name": axis_name}
  fvp = functools.partial(_fisher_product, params, batch.fisher, **knobs)
  updates, of_step = natural_gradient.natural_step(
    grads,
    fvp,
    damping=damping,
    relative=True,
    max_kl=max_kl,
    iterations=iterations,
    learning_rate=learning_rate,
  )
  updates, measured = natural_gradient.back_track(
    updates,
    lambda step: mean_kl(
      params, optax.apply_updates(params, step), batch.rows, **knobs
    ),
    max_kl=max_kl,
    tries=tries,
  )
  metrics |= of_step | measured | {"update_norm": optax.tree.norm(updates)}
  state = state_lib.TrainState(
    state.step + 1, optax.apply_updates(params, updates), state.opt_state
  )
  return state, metrics, rows


def _fisher_product(
  params, batch, vector, *, model, chunk, temperature, axis_name
):
  """F v, undamped, of the tokens of `batch`."""

  def one(micro):
    weights = step_lib.token_weights(micro)
    found = natural_gradient.fisher_vector_product(
      lambda p: step_lib.policy_outputs(model, p, micro)[:2],
      params,
      vector,
      curvature=functools.partial(
        natural_gradient.softmax_curvature,
        weights=weights,
        chunk=chunk,
        temperature=temperature,
      ),
    )
    return (found, weights.sum()), ()

  total, _ = step_lib.over_micro_batches(one, batch)
  return _mean(total, axis_name)


def mean_kl(
  before: Any,
  after: Any,
  batch: batches.TrainBatch,
  *,
  model: qwen3.Qwen3,
  chunk: int,
  temperature: float,
  axis_name: str | None = None,
) -> jax.Array:
  """KL(before || after) in nats a token, at the prefixes of `batch`.

  Exact over the vocabulary of each token, so that nothing of the sampled
  tokens' noise is in it and it is never negative; summed over an action's
  tokens it estimates the KL of actions without bias.
  """

  def one(micro):
    weights = step_lib.token_weights(micro)
    found = natural_gradient.token_kl(
      *(
        step_lib.policy_outputs(model, params, micro)[:2]
        for params in (before, after)
      ),
      chunk=chunk,
      temperature=temperature,
    )
    kl = jnp.where(weights > 0, found, 0.0) * weights
    return (kl.sum(), weights.sum()), ()

  total, _ = step_lib.over_micro_batches(one, batch)
  return _mean(total, axis_name)


def _mean(total, axis_name):
  """A sum over a sum of weights, over all devices."""
  if axis_name is not None:
    total = jax.lax.psum(total, axis_name)
  found, weight = total
  return jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), found)


def project(
  state: state_lib.TrainState,
  batch: batches.TrainBatch,
  base: lora.Base | None = None,
  *,
  log_probs_fn: Callable[..., Any],
  seed: int,
  directions: int,
  axis_name: str | None = None,
) -> tuple[state_lib.TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
  """A step that moves nothing: the scores of its rows along directions.

  Args:
    state: comes back as it is; directions depend on (seed, state.step) alone.
    batch: arrays `[M, B, ...]`.
    base: see `step.train_step`.
    log_probs_fn: `(params, micro) -> log-probs [B, N, A], ...`, by a body of
      attention that has a forward mode.
    seed: of the directions.
    directions: R.
    axis_name: unused, for rows are not summed.

  Returns:
    The state, no metrics, and "projections" `[M, B, N, R]` of the gradient of
    each action's log-prob; see `natural_gradient.score_projections`.
  """
  del axis_name
  log_probs_fn = lora.beside(base, log_probs_fn)
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def one(micro):
    def log_probs(params):
      found, *_ = log_probs_fn(params, micro)
      return jnp.where(micro.mask > 0, found, 0.0).sum(-1).reshape(-1)

    found = natural_gradient.score_projections(
      log_probs, state.params, key, directions
    )
    return (), found.reshape(*micro.past.shape, directions)

  _, found = step_lib.over_micro_batches(one, batch)
  return state, {}, {"projections": found}
