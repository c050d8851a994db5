"""A mixture of experts: router, dispatch, and what a router did.

Every token goes to its k experts, whatever the others do: rows are sorted by
expert and multiplied group by group (`grouped.py`), so there is no capacity
and nothing is dropped. Under a mesh with an axis "expert" each device holds a
part of the experts, takes all tokens of its group of devices and hands back
the sums; elsewhere the same on one device.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pivotrl_jax.models import axes
from pivotrl_jax.models import grouped
from pivotrl_jax.models import mlp

SUMS, ROUTES = "router", "routes"  # Collections that a layer writes.
ROWS = 1 << 17  # Of experts at a time, k of each token.


@flax.struct.dataclass
class Tokens:
  """What a router is told of the tokens `[B, T]` of a call.

  Attributes:
    weights: `[B, T]` what each counts in the router's sums; 0 is padding,
      which no expert computes.
    routes: `[L, B, T, k]` the experts that each goes to in each sparse layer,
      -1 where the router chooses itself; None: everywhere.
  """

  weights: jax.Array
  routes: jax.Array | None = None

  def layers(self, which: int | slice) -> "Tokens":
    """Those of some sparse layers; of one, `routes` is `[B, T, k]`."""
    routes = None if self.routes is None else self.routes[which]
    return self.replace(routes=routes)


class Router(nn.Module):
  """Scores of all experts for each token."""

  num_experts: int
  dtype: Any
  frozen: bool = False

  @nn.compact
  def __call__(self, x):
    """`[..., D]` to float32 probabilities `[..., E]`."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.normal(0.02), ("embed", "router")
      ),
      (x.shape[-1], self.num_experts),
    )
    if self.frozen:
      kernel = jax.lax.stop_gradient(kernel)
    scores = x.astype(self.dtype) @ kernel.astype(self.dtype)
    return jax.nn.softmax(scores.astype(jnp.float32))


class Experts(nn.Module):
  """SwiGLU of `num_experts` experts, each `width` wide."""

  num_experts: int
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x, routes, weights):
    """`[B, T, D]` to the sums of each token's experts, by their weights.

    Args:
      x: `[B, T, D]`.
      routes: `[B, T, k]` experts of each token; what is none adds 0.
      weights: `[B, T, k]` float32.
    """
    wide = ("experts", "embed", "mlp")
    matrices = tuple(
      self.param(
        name,
        nn.with_logical_partitioning(nn.initializers.normal(0.02), named),
        (self.num_experts, *shape),
      ).astype(self.dtype)
      for name, named, shape in (
        ("gate_proj", wide, (x.shape[-1], self.width)),
        ("up_proj", wide, (x.shape[-1], self.width)),
        ("down_proj", ("experts", "mlp", "embed"), (self.width, x.shape[-1])),
      )
    )
    if not axes.given((axes.EXPERT,)):
      return _dispatch(x, routes, weights, matrices, first=0)
    return _sharded(x, routes, weights, matrices)


class MoE(nn.Module):
  """Router and experts of a layer, in place of `mlp.MLP`.

  Attributes:
    num_experts: E.
    top_k: experts of a token.
    width: of an expert.
    normalized: the weights of a token's experts add up to 1.
    dtype: of activations.
    frozen: no derivative reaches the router's own parameters.
  """

  num_experts: int
  top_k: int
  width: int
  normalized: bool
  dtype: Any
  frozen: bool = False

  @nn.compact
  def __call__(self, x, tokens=None):
    """`[B, T, D]` to the same; `tokens` of this layer, None: all count."""
    if tokens is None:
      tokens = Tokens(jnp.ones(x.shape[:-1], jnp.float32))
    live = tokens.weights > 0
    probs = Router(self.num_experts, self.dtype, self.frozen, name="gate")(x)
    _, own = jax.lax.top_k(jax.lax.stop_gradient(probs), self.top_k)
    routes = own
    if tokens.routes is not None:
      given = tokens.routes.astype(own.dtype)
      routes = jnp.where(given >= 0, given, own)
    weights = jnp.take_along_axis(probs, routes, -1)
    if self.normalized:
      weights = weights / weights.sum(-1, keepdims=True)
    # As its own scores are stored, in transformers.
    weights = weights.astype(self.dtype).astype(jnp.float32)
    self.sow(
      SUMS,
      "sums",
      _sums(probs, routes, own, tokens),
      reduce_fn=functools.partial(jax.tree.map, jnp.add),
      init_fn=lambda: _no_sums(self.num_experts),
    )
    self.sow(ROUTES, "routes", routes, reduce_fn=lambda _, new: new)
    routes = jnp.where(live[..., None], routes, self.num_experts)
    experts = Experts(self.num_experts, self.width, self.dtype, name="experts")
    return experts(x, routes, weights)


def _dispatch(x, routes, weights, matrices, *, first):
  """The sums over those experts of each token that `matrices` are of.

  Some tokens after the others, which are computed again for derivatives: else
  a token's k rows make experts take k times the memory of all else.

  Args:
    x: `[B, T, D]`.
    routes, weights: `[B, T, k]`.
    matrices: `[e, D, F]`, `[e, D, F]`, `[e, F, D]` of experts `first` on.
    first: the first expert.
  """
  parts = [part.reshape(-1, part.shape[-1]) for part in (x, routes, weights)]
  count, tokens = -(-routes.size // ROWS), len(parts[0])
  one = functools.partial(_sums_of, matrices, first)
  if count <= 1:
    return one(parts).reshape(x.shape)
  size = -(-tokens // count)
  parts = [
    jnp.pad(
      part, ((0, size * count - tokens), (0, 0)), constant_values=fill
    ).reshape(count, size, -1)
    for part, fill in zip(parts, (0, -1, 0), strict=True)
  ]
  found = jax.lax.map(jax.checkpoint(one), parts)
  return found.reshape(-1, x.shape[-1])[:tokens].reshape(x.shape)


def _sums_of(matrices, first, parts):
  """`_dispatch` of tokens `[N, D]`, their routes and weights `[N, k]`."""
  x, routes, weights = parts
  count, k = len(matrices[0]), routes.shape[-1]
  expert = routes.reshape(-1) - first
  mine = (expert >= 0) & (expert < count)
  expert = jnp.where(mine, expert, count)
  order = jnp.argsort(expert, stable=True)
  inverse = jnp.argsort(order)
  sizes = jnp.bincount(expert, length=count + 1)[:count]
  rows = jnp.repeat(x, k, axis=0)
  rows = grouped.permuted(rows, order, inverse)
  gate, up, down = (
    functools.partial(_product, matrix, sizes) for matrix in matrices
  )
  found = down(mlp.swiglu(gate(rows), up(rows)))
  found = grouped.permuted(found, inverse, order)
  share = jnp.where(mine, weights.reshape(-1), 0.0)[:, None]
  found *= share.astype(found.dtype)  # Rows of no expert here are 0.
  return found.reshape(-1, k, x.shape[-1]).sum(1)


def _product(matrix, sizes, rows):
  return grouped.product(rows, matrix, sizes)


def _sharded(x, routes, weights, matrices):
  """`_dispatch` where experts lie over the axis "expert" of a mesh.

  Devices that share the experts gather each other's tokens, compute what
  their own experts add to all of them, and hand each its sums: the only form
  without a bound on how many tokens an expert may get. An exchange of rows by
  expert has such a bound, or moves as many rows in the worst case.
  """
  expert, (tensor,) = axes.EXPERT, axes.given((axes.TENSOR,)) or (None,)
  tokens = PartitionSpec(axes.given(axes.LINES))
  wide = PartitionSpec(expert, None, tensor)

  def each(x, routes, weights, *matrices):
    gathered = (
      jax.lax.all_gather(part, expert, axis=0, tiled=True)
      for part in (x, routes, weights)
    )
    first = jax.lax.axis_index(expert) * len(matrices[0])
    found = _dispatch(*gathered, matrices, first=first)
    if tensor:
      found = jax.lax.psum(found, tensor)
    return jax.lax.psum_scatter(found, expert, scatter_dimension=0, tiled=True)

  return jax.shard_map(
    each,
    in_specs=(tokens,) * 3 + (wide, wide, PartitionSpec(expert, tensor)),
    out_specs=tokens,
    check_vma=False,
  )(x, routes, weights, *matrices)


def _sums(probs, routes, own, tokens):
  """What a router did in a layer, summed over tokens by their weights."""
  weights = tokens.weights
  experts = jnp.arange(probs.shape[-1])
  chosen = (routes[..., None] == experts).sum(-2, dtype=jnp.float32)
  logs = jnp.log(jnp.maximum(probs, 1e-30))
  agreed = (routes[..., None] == own[..., None, :]).any(-1)
  given = jnp.zeros(routes.shape, bool)
  if tokens.routes is not None:
    given = tokens.routes >= 0
  total = functools.partial(_weighted, weights)
  return jax.lax.stop_gradient({
      "tokens": weights.sum(),
      "chosen": total(chosen),
      "entropy": total(-(probs * logs).sum(-1)),
      "given": total(given.sum(-1, dtype=jnp.float32)),
      "disagreed": total((given & ~agreed).sum(-1, dtype=jnp.float32)),
  }) | {"probs": total(probs)}  # fmt: skip


def _weighted(weights, x):
  """Sums `x` `[B, T, ...]` over tokens."""
  live = (weights > 0).reshape(*weights.shape, *(1,) * (x.ndim - 2))
  return jnp.tensordot(weights, jnp.where(live, x, 0.0), 2)


def _no_sums(experts):
  one, each = jnp.zeros(()), jnp.zeros(experts)
  return {
      "tokens": one, "chosen": each, "entropy": one, "given": one,
      "disagreed": one, "probs": each,
  }  # fmt: skip


def is_router(path: Any) -> bool:
  """Whether a path of a tree ends in that of a router's parameters."""
  names = [getattr(key, "key", None) for key in path[-3:]]
  return names == ["mlp", "gate", "kernel"]


def stacked(found: Any, layers: Sequence[int], name: str) -> Any:
  """What the layers of a model wrote, of all of them: arrays `[L, ...]`.

  Args:
    found: a collection, as `apply` returns it; a layer may have written
      nothing, which counts as 0.
    layers: which.
    name: of what they wrote.
  """
  wrote = [found.get(f"layers_{i}") for i in layers]
  each = [None if layer is None else layer["mlp"][name] for layer in wrote]
  written = next(layer for layer in each if layer is not None)
  nothing = jax.tree.map(jnp.zeros_like, written)
  each = [nothing if layer is None else layer for layer in each]
  return jax.tree.map(lambda *x: jnp.stack(x), *each)


def load(sums: dict[str, jax.Array]) -> jax.Array:
  """`[E]` what an expert's probabilities weigh in the load-balance loss.

  Args:
    sums: of all tokens, as layers write them, stacked.
  """
  count = jnp.maximum(sums["tokens"].sum(), 1e-9)
  return len(sums["probs"][0]) * sums["chosen"].sum(0) / count


def balance_loss(sums: dict[str, jax.Array]) -> jax.Array:
  """The load-balance loss of transformers (arXiv:2101.03961, eq. 4 to 6).

  E sum_e f_e P_e over the tokens of all layers alike, where f_e is how many
  of a token's k experts are e and P_e the probability of e, in the mean. At
  least about k, where the load is even.
  """
  count = jnp.maximum(sums["tokens"].sum(), 1e-9)
  return (load(sums) * sums["probs"].sum(0)).sum() / count


def statistics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Scalars of what routers did, by names of the log.

  Args:
    sums: of all tokens, as layers write them, stacked.

  Returns:
    "router/entropy" in nats, a mean over tokens and layers; "router/load_max"
    and "load_min", of the busiest and idlest expert of a layer in units of an
    even load, means over layers; "router/balance", see `balance_loss`; and
    "router/disagreement", the share of the given routes that the router would
    not have chosen (0 where none were given).
  """
  share = sums["chosen"] / jnp.maximum(sums["chosen"].mean(1), 1e-9)[:, None]
  count = jnp.maximum(sums["tokens"].sum(), 1e-9)
  return {
    "router/entropy": sums["entropy"].sum() / count,
    "router/load_max": share.max(1).mean(),
    "router/load_min": share.min(1).mean(),
    "router/balance": balance_loss(sums),
    "router/disagreement": sums["disagreed"].sum()
    / jnp.maximum(sums["given"].sum(), 1e-9),
  }
