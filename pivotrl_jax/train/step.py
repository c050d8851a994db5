"""The training step: loss sums over micro-batches, one division, one update.

Pure. A loss function sees the parameters and one micro-batch of tries and
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
from pivotrl_jax.models import lora
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import state as state_lib


def train_step(
  state: state_lib.TrainState,
  batch: batches.TrainBatch,
  base: lora.Base | None = None,
  *,
  loss_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  keys_fn: Callable[..., Any] | None = None,
  axis_name: str | None = None,
  balance: float = 0.0,
) -> tuple[state_lib.TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
  """One optimizer update from all micro-batches of `batch`.

  Args:
    state: before the step.
    batch: arrays `[M, B, ...]`.
    base: where the state's parameters are adapters, what they stand beside.
    loss_fn: `(params, micro_batch) -> (loss sum, (metric sums, rows))`, with
      "weight" and "loss" among the sums, and `rows` a dict of per-branch
      arrays `[B, N]`.
    tx: the optimizer.
    keys_fn, axis_name, balance: see `gradients`.

  Returns:
    The next state; the metrics of `gradients` with "update_norm"; and rows
    `[M, B, N]` under the old parameters.
  """
  grads, metrics, rows = gradients(
    state.params, batch, loss_fn=lora.beside(base, loss_fn),
    keys_fn=lora.beside(base, keys_fn), axis_name=axis_name, balance=balance,
  )  # fmt: skip
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  metrics["update_norm"] = optax.tree.norm(updates)
  params = optax.apply_updates(state.params, updates)
  return (
    state_lib.TrainState(state.step + 1, params, opt_state),
    metrics,
    rows,
  )


def gradients(
  params: Any,
  batch: batches.TrainBatch,
  *,
  loss_fn: Callable[..., Any],
  keys_fn: Callable[..., Any] | None = None,
  axis_name: str | None = None,
  balance: float = 0.0,
) -> tuple[Any, dict[str, jax.Array], dict[str, jax.Array]]:
  """The gradient of all micro-batches; see `train_step`.

  Args:
    params: where.
    batch: arrays `[M, B, ...]`.
    loss_fn: as there; of a mixture of experts there is "router" among the
      sums, what its routers did, and it takes `router_load`.
    keys_fn: `(params, micro_batch) -> (keys, router)`, as `trie_keys`; for
      batches of several parts, see `by_parts`.
    axis_name: the pmap axis to sum over, if any.
    balance: coefficient of `moe.balance_loss` beside the loss. It is a product
      of means over the whole batch, of which one has no derivative: a forward
      pass over all micro-batches finds that one first.

  Returns:
    The gradient; metrics, each a sum divided by "weight" ("loss", as the
    gradient, by all that rows left out add too), with "grad_norm" and those of
    `moe.statistics`; and rows `[M, B, N]`.
  """
  if balance:
    sums, _ = over_micro_batches(lambda x: loss_fn(params, x)[1], batch)
    if axis_name is not None:
      sums = jax.lax.psum(sums, axis_name)
    router, (_, whole) = sums["router"], _divisors(sums)
    count = jnp.maximum(router["tokens"].sum(), 1e-9)
    # All that is summed is divided by `whole` in the end.
    load = balance * moe.load(router) * whole / count
    loss_fn = functools.partial(loss_fn, router_load=load)
    keys_fn = keys_fn and functools.partial(keys_fn, router_load=load)

  def one(micro):
    if micro.parts > 1:
      return by_parts(params, micro, loss_fn=loss_fn, keys_fn=keys_fn)
    grad, (sums, rows) = jax.grad(loss_fn, has_aux=True)(params, micro)
    return (grad, sums), rows

  (grads, sums), rows = over_micro_batches(one, batch)
  if axis_name is not None:
    grads, sums = jax.lax.psum((grads, sums), axis_name)
  weight, whole = _divisors(sums)
  grads = jax.tree.map(lambda x: x / whole, grads)
  metrics = {
    name: value / weight
    for name, value in sums.items()
    if name not in ("weight", "left_out", "router")
  }
  metrics["loss"] = sums["loss"] / whole
  metrics["grad_norm"] = optax.tree.norm(grads)
  if "router" in sums:
    metrics |= moe.statistics(sums["router"])
  return grads, metrics, rows


def by_parts(
  params: Any,
  micro: batches.TrainBatch,
  *,
  loss_fn: Callable[..., Any],
  keys_fn: Callable[..., Any],
) -> tuple[tuple[Any, dict[str, Any]], dict[str, jax.Array]]:
  """The gradient of a micro-batch whose branches are run part by part.

  Its tries go forward once, for their keys and values, and backward once, by
  what all branches together want of these: no more than a part's activations
  are held at a time beside those of the tries.

  Args:
    params: where.
    micro: arrays `[B, ...]`.
    loss_fn, keys_fn: see `gradients`.

  Returns:
    (The gradient, the loss's sums), and its rows `[B, N, ...]`.
  """
  (keys, aside), tries_back, router = jax.vjp(
    lambda p: keys_fn(p, micro), params, has_aux=True
  )

  def one(part):
    def loss(params, keys):
      return loss_fn(params, part.replace(
          tries=micro.tries, ends=micro.ends, depths=micro.depths, keys=keys
      ))  # fmt: skip

    (grads, of_keys), (sums, rows) = jax.grad(
      loss, argnums=(0, 1), has_aux=True
    )(params, keys)
    # Added up as gradients of parameters are, whatever activations are in.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), of_keys)
    return (grads, wide, sums), rows

  (grads, of_keys, sums), rows = over_micro_batches(one, _parts_of(micro))
  of_keys = jax.tree.map(lambda x, key: x.astype(key.dtype), of_keys, keys)
  (of_tries,) = tries_back((of_keys, jnp.ones_like(aside)))
  grads = jax.tree.map(jnp.add, grads, of_tries)
  if router:
    sums["router"] = jax.tree.map(jnp.add, sums["router"], router)

  def whole(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])

  return (grads, sums), jax.tree.map(whole, rows)


def _parts_of(micro):
  """The branches `[K, B, ...]` of a micro-batch's parts, without the tries."""
  count = micro.parts

  def split(x):
    x = x.reshape(len(x), count, -1, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  left_out = jnp.zeros((count, len(micro.left_out))).at[0].set(micro.left_out)
  rest = micro.replace(
    tries=None, ends=None, depths=None, left_out=None, parts=1
  )
  parts = jax.tree.map(split, rest)
  size = parts.actions.shape[2] * parts.actions.shape[3]
  # Places within the part; behind its last there is no action either.
  offset = size * jnp.arange(count)[:, None, None]
  return parts.replace(places=parts.places - offset, left_out=left_out)


def _divisors(sums):
  """What metrics and what the loss is divided by."""
  weight = jnp.maximum(sums["weight"], 1e-9)
  return weight, weight + sums.get("left_out", 0.0)


def over_micro_batches(
  function: Callable[..., Any], batch: batches.TrainBatch
) -> tuple[Any, Any]:
  """Runs `function` on each micro-batch up to the last that holds an action.

  How many do is a value, not a shape: M may be generous.

  Args:
    function: micro-batch -> (what is summed, what is kept of each).
    batch: arrays `[M, B, ...]`.

  Returns:
    The sums, and what is kept as arrays `[M, ...]`, 0 where there was nothing.
  """

  def micro(index):
    return jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batch
    )

  def body(index, carry):
    total, kept = carry
    part, new = function(micro(index))
    kept = jax.tree.map(
      lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, index, 0),
      kept, new,
    )  # fmt: skip
    return jax.tree.map(jnp.add, total, part), kept

  total, kept = jax.eval_shape(lambda: function(micro(0)))
  count = len(batch.mask)
  zeros = (
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total),
    jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), kept),
  )
  live = (batch.mask > 0).any((1, 2, 3))
  last = jnp.max(jnp.where(live, jnp.arange(1, count + 1), 0))
  with jax.named_scope("micro_batches"):  # So dry_run/hlo.py knows it.
    return jax.lax.fori_loop(0, last, body, zeros)


def score(
  log_probs_fn: Callable[..., Any], params: Any, batch: batches.TrainBatch
) -> jax.Array:
  """Log-probs `[M, B, N, A]` of a batch, without gradients."""
  _, found = over_micro_batches(
    lambda micro: ((), log_probs_fn(params, micro)[0]), batch
  )
  return found


def policy_log_probs(
  model: qwen3.Qwen3,
  params: Any,
  micro: batches.TrainBatch,
  *,
  chunk: int,
  temperature: float = 1.0,
  count: str = "rows",
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """Log-probs and entropies `[B, N, A]` of the action tokens of tries; and
  what the policy's routers did, {} of one without; see `policy_outputs`.
  """
  hidden, unembed, targets, router = policy_outputs(
    model, params, micro, count=count
  )
  found = logprobs.token_log_probs(
    hidden,
    unembed,
    targets,
    chunk=chunk,
    temperature=temperature,
    lines=len(micro.places),
  )
  lines = jnp.arange(len(micro.places))[:, None]

  def back(x):
    out = jnp.zeros((len(lines), micro.actions[0].size), x.dtype)
    out = out.at[lines, micro.places].set(
      x.reshape(micro.places.shape), mode="drop"
    )
    return out.reshape(micro.actions.shape)

  return *jax.tree.map(back, found), router


def policy_outputs(
  model: qwen3.Qwen3,
  params: Any,
  micro: batches.TrainBatch,
  *,
  count: str = "rows",
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
  """What a policy says of a micro-batch.

  Args:
    model: the policy.
    params: its parameters.
    micro: arrays `[B, ...]`.
    count: how often the sums of routers count a token of a trie, one of
      `COUNTS`; see `router_tokens`.

  Returns:
    Hidden states `[B * S, D]` of the action tokens in the order of
    `micro.places`, the matrix `[D, V]` to their logits, the tokens `[B * S]`;
    and the sums of the routers of all layers, arrays `[L, ...]` (see
    `moe.statistics`), {} of a policy without.
  """
  branch, targets, layout = branch_inputs(micro)
  apply = functools.partial(
    model.apply, {"params": params}, micro.tries, branch, layout,
    reach=micro.actions.shape[-1] - 1, kv=micro.keys,
  )  # fmt: skip
  router = {}
  if model.config.sparse_layers:
    hidden, found = apply(
      tokens=router_tokens(micro, branch, layout, count=count),
      mutable=[moe.SUMS],
    )
    router = moe.stacked(found[moe.SUMS], model.config.sparse_layers, "sums")
  else:
    hidden = apply()
  unembed = qwen3.unembedding(params, model.config)
  hidden = hidden.reshape(-1, hidden.shape[-1])
  return hidden, unembed, targets.reshape(-1), router


def trie_keys(
  model: qwen3.Qwen3,
  params: Any,
  micro: batches.TrainBatch,
  *,
  count: str = "rows",
  router_load: jax.Array | None = None,
) -> tuple[tuple[Any, jax.Array], dict[str, jax.Array]]:
  """What branches read of the tries of a micro-batch.

  Args:
    model, params, micro, count: see `policy_outputs`.
    router_load: see `gradients`.

  Returns:
    (Keys and values as `qwen3.Qwen3.keys` gives them, what the routers' choice
    for the tries' tokens adds to the loss), and the sums of the routers.
  """
  branch, _, layout = branch_inputs(micro)
  apply = functools.partial(
    model.apply, {"params": params}, micro.tries, layout, method="keys"
  )
  if not model.config.sparse_layers:
    return (apply(), jnp.zeros(())), {}
  tokens, _ = router_tokens(micro, branch, layout, count=count)
  keys, found = apply(tokens=tokens, mutable=[moe.SUMS])
  if not found:  # Experts in the last layer alone, which tries do not have.
    return (keys, jnp.zeros(())), {}
  router = moe.stacked(found[moe.SUMS], model.config.sparse_layers, "sums")
  loss, sums = _with_router(jnp.zeros(()), {}, router, router_load)
  return (keys, loss), sums["router"]


COUNTS = ("rows", "once")


def router_tokens(
  micro: batches.TrainBatch,
  inputs: jax.Array,
  layout: qwen3.Layout,
  *,
  count: str,
) -> tuple[moe.Tokens, moe.Tokens]:
  """What routers are told of the tokens of tries and of branches.

  Args:
    micro: arrays `[B, ...]`.
    inputs, layout: of `branch_inputs`.
    count: "rows": a token of a trie counts as often as branches see it, as
      it would were each row a sequence of its own; "once": as often as it is
      computed, a prompt's last token among its branches once too.
  """
  live = layout.branch_ends > 0
  branch, offset = jnp.divmod(micro.places, micro.actions.shape[-1])
  first = live & (offset == 0)
  if count == "rows":
    # Branches that leave the trie before a place, and at most at the last.
    at = jnp.where(first, layout.past + 1, 0)
    hits = (
      jnp.zeros((len(at), micro.tries.shape[1] + 1))
      .at[jnp.arange(len(at))[:, None], at]
      .add(first.astype(jnp.float32))
    )
    before = jnp.cumsum(hits, 1)
    end = jnp.take_along_axis(before, layout.ends, 1)
    trie = jnp.where(layout.ends > 0, end - before[:, :-1], 0.0)
    own = live.astype(jnp.float32)
  else:
    trie = (layout.ends > 0).astype(jnp.float32)
    same = (layout.past[:, :, None] == layout.past[:, None]) & first[:, None]
    same &= inputs[:, :, None] == inputs[:, None]
    own = jnp.where(first, 1.0 / jnp.maximum(same.sum(-1), 1), live)
  routes = None
  if micro.routes is not None:
    lines = jnp.arange(len(branch))[:, None]
    routes = micro.routes.at[lines, branch, offset].get(
      mode="fill", fill_value=-1
    )
    routes = jnp.moveaxis(routes, 2, 0)
  return moe.Tokens(trie), moe.Tokens(own, routes)


def token_weights(micro: batches.TrainBatch) -> jax.Array:
  """`micro.mask` `[B * S]` in the order of `micro.places`, 0 on padding."""
  flat = micro.mask.reshape(len(micro.mask), -1)
  found = jnp.take_along_axis(
    flat, micro.places, axis=1, mode="fill", fill_value=0.0
  )
  return found.reshape(-1)


def branch_inputs(
  micro: batches.TrainBatch,
) -> tuple[jax.Array, jax.Array, qwen3.Layout]:
  """What the model takes of a micro-batch.

  Returns:
    The branches' inputs `[B, S]`, which are the actions' tokens moved on by
    one behind the last token of their prompt; the tokens `[B, S]` that their
    outputs predict; and where the tokens of tries and branches stand.
  """
  count, width = micro.actions.shape[1:]
  branch, offset = jnp.divmod(micro.places, width)
  live = branch < count
  branch, offset = jnp.where(live, branch, 0), jnp.where(live, offset, 0)

  def take(x, places):
    return jnp.take_along_axis(x, places, axis=1)

  flat = micro.actions.reshape(len(branch), -1)
  targets = take(flat, branch * width + offset)
  past = take(micro.past, branch)
  inputs = jnp.where(
    offset == 0,
    take(micro.first, branch),
    take(flat, branch * width + jnp.maximum(offset - 1, 0)),
  )
  depth = take(micro.depths, jnp.maximum(past, 0))
  size = branch.shape[1]
  # Each branch ends where the next one, or padding, begins.
  begins = jnp.where(offset == 0, jnp.arange(size), size)
  begins = jnp.pad(begins, ((0, 0), (0, 1)), constant_values=size)
  ends = jax.lax.cummin(begins, axis=1, reverse=True)[:, 1:]
  return inputs, targets, qwen3.Layout(
      ends=micro.ends,
      depths=micro.depths,
      past=jnp.where(live, past, -1),
      branch_ends=jnp.where(live, ends, 0),
      branch_depths=jnp.where(past < 0, 0, depth + 1) + offset,
  )  # fmt: skip


def sft_loss(params, micro, *, log_probs_fn, router_load=None):
  """Negative log-likelihood of the demonstrations (paper, eq. 1)."""
  log_probs, entropy, router = log_probs_fn(params, micro)
  loss, sums = logprobs.sft_loss(log_probs, micro.mask)
  sums = sums | {"entropy": _masked_sum(entropy, micro.mask), "loss": loss}
  loss, sums = _with_router(loss, sums, router, router_load)
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
  reject_gap: float = 0.0,
  router_load=None,
):
  """The clipped surrogate and its KL term (paper, eq. 7).

  Without `micro.old_log_probs` the step is the first on its batch: the old
  policy is the current one, its ratio 1.
  """
  log_probs, entropy, router = log_probs_fn(params, micro)
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
  if reject_gap:
    kept = grpo.within_gap(
      old, micro.sampler_log_probs, micro.mask, most=reject_gap
    )
    weights = weights * kept[..., None]
    sums["rejected"] = _masked_sum(1.0 - kept[..., None], micro.mask)
  surrogate, parts = grpo.clipped_surrogate(
      flat(log_probs), flat(old), micro.advantages.reshape(-1),
      flat(weights), clip_low=clip_low, clip_high=clip_high,
  )  # fmt: skip
  # The divisor counts actions or tokens, whatever the weights say.
  sums |= parts | {"weight": grpo.divisor(flat(micro.mask), norm=loss_norm)}
  sums["left_out"] = micro.left_out.sum()
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
  loss, sums = _with_router(loss, sums, router, router_load)
  gap = jnp.where(micro.mask > 0, old - micro.sampler_log_probs, 0.0)
  rows = {"log_prob": _masked_rows(log_probs, micro.mask), "gap": gap}
  return loss, (sums, rows)


def _with_router(loss, sums, router, load):
  """Adds what routers did to the sums, and their part to the loss.

  Args:
    loss, sums: of the policy; "loss" stays the policy's alone.
    router: see `policy_outputs`.
    load: `[E]` weights of the experts' probabilities, or None.
  """
  if not router:
    return loss, sums
  if load is not None:
    loss = loss + (jax.lax.stop_gradient(load) * router["probs"].sum(0)).sum()
  return loss, sums | {"router": jax.lax.stop_gradient(router)}


def _flatten(x, *, width):
  return x.reshape(-1, width)


def _masked_sum(x, mask):
  return (jnp.where(mask > 0, x, 0.0) * mask).sum()


def _masked_rows(x, mask):
  return jax.lax.stop_gradient(jnp.where(mask > 0, x, 0.0).sum(-1))
