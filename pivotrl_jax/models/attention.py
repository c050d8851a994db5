"""Attention of a trajectory tree: trunk tokens, and branches on a trunk.

Every query sees a *leading* part of some keys: a trunk token sees the trunk
up to itself, a branch token sees the trunk up to its attach point, and its
own branch up to itself. So one primitive is enough, `attend`, whose mask is
one integer a query. What a branch token gets from the trunk and from its own
branch is joined by `merge`, exactly, from the two log-sum-exps.

What computes it is the `body`, one of `BODIES`, all of one meaning:
- `dense` and `xla`: `attention_xla`, on every backend;
- `pallas`: the kernels of `attention_pallas`;
- `cudnn`: the trunk over itself by cuDNN, all else by `pallas`;
- `auto`: `xla` on CPU and TPU; on GPU `cudnn` in 16 bits, else `pallas`.

Keys and values are kept heads first, `[B, K, S, C]`: then every product is a
plain batched matrix product, and a cache is never transposed.
"""

import chex
import jax
import jax.numpy as jnp

from pivotrl_jax.models import attention_pallas
from pivotrl_jax.models import attention_xla
from pivotrl_jax.models.attention_xla import MASKED

BODIES = ("auto", "dense", "xla", "pallas", "cudnn")


def rotary_tables(
  positions: jax.Array, width: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """What `rotate` multiplies by, `[..., 1, 2, C/2]` of positions `[...]`."""
  half = width // 2
  inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * inverse
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.stack([cos, cos], -2), jnp.stack([-sin, sin], -2)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns `x` `[..., H, C]` to its position, halves as in HF."""
  cos, sin = tables
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
  turned = halves * cos + jnp.flip(halves, -2) * sin
  return turned.reshape(x.shape).astype(x.dtype)


def merge(
  first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Joins the attention over two disjoint sets of keys.

  Args:
    first, second: (output `[..., C]`, log-sum-exp `[...]`) of `attend`.

  Returns:
    `[..., C]` what attention over the union of the keys gives.
  """
  share = jax.nn.sigmoid(first[1] - second[1])[..., None]
  joined = share * first[0] + (1.0 - share) * second[0]
  return joined.astype(first[0].dtype)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  limit: jax.Array,
  *,
  body: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention over leading keys.

  Args:
    q: `[B, Q, H, C]` queries.
    k, v: `[B, K, S, C]` keys and values; K divides H.
    limit: `[B, Q]` query i sees the keys `j < limit[b, i]`; 0 sees none.
    body: one of `BODIES`.

  Returns:
    Outputs `[B, Q, H, C]` in q's dtype (0 where limit is 0) and the float32
    log-sum-exp of the scaled scores `[B, Q, H]`.
  """
  chex.assert_rank([q, k, v, limit], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  chex.assert_shape(limit, q.shape[:2])
  match _chosen(body, q.dtype):
    case "dense":
      return attention_xla.dense(q, k, v, limit)
    case "xla":
      return attention_xla.blockwise(q, k, v, limit)
    case _:
      return attention_pallas.attend(q, k, v, limit)


def attend_self(q, k, v, length, *, body="auto"):
  """Outputs of a trunk over itself: `[B, T, H, C]` on `[B, K, T, C]`.

  A token sees the trunk up to itself. From `length` `[B]` on tokens are
  padding, whose outputs are of no use.
  """
  if _chosen(body, q.dtype) == "cudnn":
    return by_library(q, k, v, length)
  place = jnp.arange(q.shape[1])
  limit = jnp.where(place < length[:, None], place + 1, 0)
  return attend(q, k, v, limit, body=body)[0]


def by_library(q, k, v, length, *, implementation="cudnn"):
  """`attend_self` by `jax.nn.dot_product_attention`."""
  length = jnp.maximum(length, 1)
  return jax.nn.dot_product_attention(
    q,
    jnp.moveaxis(k, 1, 2),
    jnp.moveaxis(v, 1, 2),
    is_causal=True,
    query_seq_lengths=length,
    key_value_seq_lengths=length,
    implementation=implementation,
  )


def attend_trunk(q, k, v, limit, *, body="auto"):
  """`attend` of one query a branch, without a derivative.

  Args:
    q: `[B, N, H, C]`, the branches in the order of their limits.
    k, v: `[B, K, T, C]` of the trunk.
    limit: `[B, N]`.
    body: one of `BODIES`.
  """
  if _chosen(body, q.dtype) in ("pallas", "cudnn"):
    return attention_pallas.decode(q, k, v, limit)
  dense = attention_xla.dense
  rows, keys = q.shape[1] // 2, k.shape[2] // 2
  if jax.default_backend() != "cpu" or rows < 16 or keys < 512:
    return dense(q, k, v, limit)
  # Where the first half of the branches sees only the first half of a long
  # trunk, no more is read for it. Finer cuts cost more in small products than
  # they leave out.
  first = jax.lax.cond(
    limit[:, :rows].max() <= keys,
    lambda: dense(q[:, :rows], k[:, :, :keys], v[:, :, :keys], limit[:, :rows]),
    lambda: dense(q[:, :rows], k, v, limit[:, :rows]),
  )
  second = dense(q[:, rows:], k, v, limit[:, rows:])
  return jax.tree.map(lambda *x: jnp.concatenate(x, 1), first, second)


def attend_own(q, k, v, length):
  """One query a branch over its own keys.

  Args:
    q: `[B, N, H, C]`.
    k: `[B*N, K, C, S]`: as the product wants them, for they are read at every
      step and written once.
    v: `[B*N, K, S, C]`.
    length: scalar, how many of the keys are seen.

  Returns:
    What `attend` does.
  """
  grouped = q.reshape(-1, k.shape[1], q.shape[2] // k.shape[1], q.shape[3])
  scores = attention_xla.product("nkgc,nkcs->nkgs", grouped, k)
  scores = jnp.where(
    jnp.arange(k.shape[3]) < length, scores * attention_xla.scale(q), MASKED
  )
  lse = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
  out = attention_xla.product("nkgs,nksc->nkgc", weights, v)
  return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def _chosen(body, dtype):
  if body != "auto":
    return body
  if jax.default_backend() != "gpu":
    return "xla"
  return "cudnn" if jnp.dtype(dtype).itemsize == 2 else "pallas"
