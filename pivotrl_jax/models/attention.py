"""Attention of a trajectory tree: trunk tokens, and branches on a trunk.

Every query sees a *leading* part of some keys: a trunk token sees the trunk
up to itself, a branch token sees the trunk up to its attach point, and its
own branch up to itself. So one primitive is enough, `attend`, whose mask is
one integer a query. What a branch token gets from the trunk and from its own
branch is joined by `merge`, exactly, from the two log-sum-exps.

`attend` comes in two bodies with one meaning:
- `dense` forms all scores at once: short keys, and the reference of the tests;
- `blockwise` walks blocks of keys with an online softmax, keeps no scores for
  the backward pass and skips the blocks that no query of a block can see.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp

_BLOCK = {"cpu": 128}
_MASKED = -1e30  # Finite, so that exp and differences never make a NaN.


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
  """Rotates `x` `[..., H, C]` by its position `[...]`, halves as in HF."""
  half = x.shape[-1] // 2
  inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * inverse
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [left * cos - right * sin, right * cos + left * sin], axis=-1
  )
  return turned.astype(x.dtype)


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
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention over leading keys.

  Args:
    q: `[B, Q, H, C]` queries.
    k, v: `[B, S, K, C]` keys and values; K divides H.
    limit: `[B, Q]` query i sees the keys `j < limit[b, i]`; 0 sees none.
    block: queries and keys of a block; `dense` is used up to one block. By
      default what fits the caches of the backend.

  Returns:
    Outputs `[B, Q, H, C]` in q's dtype (0 where limit is 0) and the float32
    log-sum-exp of the scaled scores `[B, Q, H]`.
  """
  chex.assert_rank([q, k, v, limit], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  chex.assert_shape(limit, q.shape[:2])
  block = block or _BLOCK.get(jax.default_backend(), 512)
  if q.shape[1] <= block and k.shape[1] <= block:
    return dense(q, k, v, limit)
  return blockwise(q, k, v, limit, block)


def dense(q, k, v, limit):
  """`attend` with all scores `[B, K, H/K, Q, S]` formed at once."""
  b, n, heads, dim = q.shape
  grouped = _group(q, k.shape[2])
  scores = _scores(grouped, k, limit, 0)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  weights = jnp.where(scores > _MASKED, weights, 0.0)
  total = weights.sum(-1)
  safe = jnp.where(total > 0, total, 1.0)
  out = jnp.einsum(
    "bkgqs,bskc->bqkgc",
    (weights / safe[..., None]).astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  lse = jnp.where(total > 0, top[..., 0] + jnp.log(safe), _MASKED)
  return (
    out.reshape(b, n, heads, dim).astype(q.dtype),
    jnp.moveaxis(lse, 3, 1).reshape(b, n, heads),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise(q, k, v, limit, block):
  """`attend` by blocks with an online softmax; scores are recomputed."""
  return _blockwise_forward(q, k, v, limit, block)[0]


def _blockwise_forward(q, k, v, limit, block):
  size, keys = q.shape[1], k.shape[1]
  blocks_q, block_q = _blocks(size, block)
  blocks_k, block_k = _blocks(keys, block)
  k_pad = _pad(k, blocks_k * block_k)
  v_pad = _pad(v, blocks_k * block_k)
  parts = _split(_pad(q, blocks_q * block_q), blocks_q)
  limits = _split(_pad(limit, blocks_q * block_q), blocks_q)

  def one(part):
    queries, ends = part
    grouped = _group(queries, k.shape[2])

    def body(i, carry):
      top, total, out = carry
      keys_i = jax.lax.dynamic_slice_in_dim(k_pad, i * block_k, block_k, 1)
      vals_i = jax.lax.dynamic_slice_in_dim(v_pad, i * block_k, block_k, 1)
      scores = _scores(grouped, keys_i, ends, i * block_k)
      new_top = jnp.maximum(top, scores.max(-1))
      weights = jnp.where(
        scores > _MASKED, jnp.exp(scores - new_top[..., None]), 0.0
      )
      decay = jnp.exp(top - new_top)
      out = out * decay[..., None] + jnp.einsum(
        "bkgqs,bskc->bkgqc",
        weights.astype(v.dtype),
        vals_i,
        preferred_element_type=jnp.float32,
      )
      return new_top, total * decay + weights.sum(-1), out

    shape = grouped.shape[:-1]
    top, total, out = jax.lax.fori_loop(
      0,
      _visible_blocks(ends, block_k),
      body,
      (
        jnp.full(shape, _MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(grouped.shape, jnp.float32),
      ),
    )
    safe = jnp.where(total > 0, total, 1.0)
    out = (out / safe[..., None]).astype(q.dtype)
    lse = jnp.where(total > 0, top + jnp.log(safe), _MASKED)
    return _ungroup(out), _ungroup(lse)

  out, lse = jax.lax.map(one, (parts, limits))
  out, lse = _join(out)[:, :size], _join(lse)[:, :size]
  return (out, lse), (q, k, v, limit, out, lse)


def _blockwise_backward(block, saved, cotangents):
  q, k, v, limit, out, lse = saved
  d_out, d_lse = cotangents
  size, keys = q.shape[1], k.shape[1]
  blocks_q, block_q = _blocks(size, block)
  blocks_k, block_k = _blocks(keys, block)
  k_pad = _pad(k, blocks_k * block_k)
  v_pad = _pad(v, blocks_k * block_k)
  d_out = d_out.astype(jnp.float32)
  delta = (d_out * out.astype(jnp.float32)).sum(-1) - d_lse
  scale = 1.0 / math.sqrt(q.shape[-1])
  parts = [
    _split(_pad(x, blocks_q * block_q), blocks_q)
    for x in (q, limit, lse, delta, d_out)
  ]

  def one(carry, part):
    queries, ends, lse_i, delta_i, d_out_i = part
    grouped = _group(queries, k.shape[2])
    lse_g = _group(lse_i, k.shape[2])[..., None]
    delta_g = _group(delta_i, k.shape[2])[..., None]
    d_out_g = _group(d_out_i, k.shape[2]).astype(v.dtype)

    def body(i, inner):
      d_q, d_k, d_v = inner
      start = i * block_k
      keys_i = jax.lax.dynamic_slice_in_dim(k_pad, start, block_k, 1)
      vals_i = jax.lax.dynamic_slice_in_dim(v_pad, start, block_k, 1)
      scores = _scores(grouped, keys_i, ends, start)
      weights = jnp.where(scores > _MASKED, jnp.exp(scores - lse_g), 0.0)
      d_weights = jnp.einsum(
        "bkgqc,bskc->bkgqs",
        d_out_g,
        vals_i,
        preferred_element_type=jnp.float32,
      )
      d_scores = (weights * (d_weights - delta_g) * scale).astype(k.dtype)
      weights = weights.astype(v.dtype)
      d_q += jnp.einsum(
        "bkgqs,bskc->bkgqc",
        d_scores,
        keys_i,
        preferred_element_type=jnp.float32,
      )
      d_k = _add_block(
        d_k, jnp.einsum("bkgqs,bkgqc->bskc", d_scores, grouped), start
      )
      d_v = _add_block(
        d_v, jnp.einsum("bkgqs,bkgqc->bskc", weights, d_out_g), start
      )
      return d_q, d_k, d_v

    d_q, d_k, d_v = jax.lax.fori_loop(
      0,
      _visible_blocks(ends, block_k),
      body,
      (jnp.zeros(grouped.shape, jnp.float32), *carry),
    )
    return (d_k, d_v), _ungroup(d_q)

  zeros = jnp.zeros(k_pad.shape, jnp.float32)
  (d_k, d_v), d_q = jax.lax.scan(one, (zeros, zeros), tuple(parts))
  return (
    _join(d_q)[:, :size].astype(q.dtype),
    d_k[:, :keys].astype(k.dtype),
    d_v[:, :keys].astype(v.dtype),
    None,
  )


blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _scores(grouped, k, limit, start):
  """Scaled scores `[B, K, g, Q, S]`; `_MASKED` at keys past the limit."""
  scores = jnp.einsum(
    "bkgqc,bskc->bkgqs", grouped, k, preferred_element_type=jnp.float32
  )
  seen = start + jnp.arange(k.shape[1]) < limit[..., None]
  return jnp.where(
    seen[:, None, None], scores / math.sqrt(k.shape[-1]), _MASKED
  )


def _group(x, kv_heads):
  """`[B, Q, H, ...]` to `[B, K, H/K, Q, ...]`."""
  b, n, heads = x.shape[:3]
  x = x.reshape(b, n, kv_heads, heads // kv_heads, *x.shape[3:])
  return jnp.moveaxis(x, 1, 3)


def _ungroup(x):
  """`[B, K, g, Q, ...]` to `[B, Q, H, ...]`."""
  x = jnp.moveaxis(x, 3, 1)
  return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def _blocks(size, block):
  """How many blocks, and their size: equal parts of at most `block`."""
  count = max(1, -(-size // block))
  return count, max(1, -(-size // count))


def _visible_blocks(limit, block):
  return (jnp.max(limit) + block - 1) // block


def _pad(x, size):
  return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _split(x, count):
  """`[B, count*n, ...]` to `[count, B, n, ...]`."""
  x = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _join(x):
  """The inverse of `_split`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _add_block(total, part, start):
  """Adds `part` to the rows of `total` from `start` on."""
  old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], 1)
  return jax.lax.dynamic_update_slice_in_dim(
    total, old + part.astype(total.dtype), start, 1
  )
