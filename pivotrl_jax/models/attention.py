"""Attention of a trajectory tree: trunk tokens, and branches on a trunk.

Every query sees a *leading* part of some keys: a trunk token sees the trunk
up to itself, a branch token sees the trunk up to its attach point, and its
own branch up to itself. So one primitive is enough, `attend`, whose mask is
one integer a query. What a branch token gets from the trunk and from its own
branch is joined by `merge`, exactly, from the two log-sum-exps.

It comes in two bodies with one meaning:
- `dense` forms all scores at once: decoding, where a query is one token, and
  forward-mode derivatives; the reference of the tests;
- `blockwise` (`attend`) walks blocks of keys with an online softmax, keeps no
  scores for the backward pass and skips the blocks that no query can see.

Keys and values are kept heads first, `[B, K, S, C]`: then every product is a
plain batched matrix product, and a cache is never transposed.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp

_CPU_SCORES = 1 << 21  # Scores of a block, over batch and heads.
# Of keys that are not seen, and the least maximum of a row: finite, so that
# differences never make a NaN, and so far apart that exp gives exactly 0.
_MASKED, _LEAST = -1e30, -1e29


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
  blocks: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention over leading keys.

  Args:
    q: `[B, Q, H, C]` queries.
    k, v: `[B, K, S, C]` keys and values; K divides H.
    limit: `[B, Q]` query i sees the keys `j < limit[b, i]`; 0 sees none.
    blocks: most queries and keys of a block; by default what fits the caches
      of the backend.

  Returns:
    Outputs `[B, Q, H, C]` in q's dtype (0 where limit is 0) and the float32
    log-sum-exp of the scaled scores `[B, Q, H]`.
  """
  chex.assert_rank([q, k, v, limit], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  chex.assert_shape(limit, q.shape[:2])
  return blockwise(q, k, v, limit, blocks or _fitting_blocks(q))


def attend_trunk(q, k, v, limit):
  """`dense` of one query a branch, for branches in the order of their limits.

  On CPU, where the first half of the branches sees only the first half of a
  long trunk, no more is read for it. (Finer cuts cost more in small products
  than they leave out; elsewhere one product is fastest.)
  """
  rows, keys = q.shape[1] // 2, k.shape[2] // 2
  if jax.default_backend() != "cpu" or rows < 16 or keys < 512:
    return dense(q, k, v, limit)
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
  scores = _product("nkgc,nkcs->nkgs", grouped, k)
  scores = jnp.where(
    jnp.arange(k.shape[3]) < length, scores * _scale(q), _MASKED
  )
  lse = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
  out = _product("nkgs,nksc->nkgc", weights, v)
  return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def dense(q, k, v, limit):
  """`attend` with all scores `[B, K, Q*H/K, S]` formed at once."""
  grouped, ends = _group(q, k.shape[1]), _ends(q, k, limit)
  scores = _scores(grouped, k, ends, 0)
  top = jnp.maximum(jax.lax.stop_gradient(scores.max(-1)), _LEAST)
  weights = jnp.exp(scores - top[..., None])
  total = weights.sum(-1)
  safe = jnp.where(total > 0, total, 1.0)
  out = _product("bkms,bksc->bkmc", weights.astype(v.dtype), v)
  lse = jnp.where(total > 0, top + jnp.log(safe), _MASKED)
  return (
    _ungroup(out / safe[..., None], q.shape).astype(q.dtype),
    _ungroup(lse, q.shape[:3]),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise(q, k, v, limit, blocks):
  """`attend` by blocks with an online softmax; scores are recomputed."""
  return _blockwise_forward(q, k, v, limit, blocks)[0]


def _blockwise_forward(q, k, v, limit, blocks):
  size = q.shape[1]
  blocks_q, block_q = _blocks(size, blocks[0])
  blocks_k, block_k = _blocks(k.shape[2], blocks[1])
  k_pad = _pad(k, blocks_k * block_k, 2)
  v_pad = _pad(v, blocks_k * block_k, 2)
  parts = _split(_pad(q, blocks_q * block_q, 1), blocks_q)
  limits = _split(_pad(limit, blocks_q * block_q, 1), blocks_q)

  def one(part):
    queries, limit_i = part
    grouped, ends = _group(queries, k.shape[1]), _ends(queries, k, limit_i)

    def body(i, carry):
      top, total, out = carry
      start = i * block_k
      scores = _scores(grouped, _block(k_pad, start, block_k), ends, start)
      new_top = jnp.maximum(top, scores.max(-1))
      weights = jnp.exp(scores - new_top[..., None])
      decay = jnp.exp(top - new_top)
      out = out * decay[..., None] + _product(
          "bkms,bksc->bkmc", weights.astype(v.dtype),
          _block(v_pad, start, block_k),
      )  # fmt: skip
      return new_top, total * decay + weights.sum(-1), out

    shape = grouped.shape[:-1]
    top, total, out = _each_block(
      blocks_k,
      limit_i,
      block_k,
      body,
      (
        jnp.full(shape, _LEAST, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(grouped.shape, jnp.float32),
      ),
    )
    safe = jnp.where(total > 0, total, 1.0)
    out = (out / safe[..., None]).astype(q.dtype)
    lse = jnp.where(total > 0, top + jnp.log(safe), _MASKED)
    return _ungroup(out, queries.shape), _ungroup(lse, queries.shape[:3])

  out, lse = jax.lax.map(one, (parts, limits))
  out, lse = _join(out)[:, :size], _join(lse)[:, :size]
  return (out, lse), (q, k, v, limit, out, lse)


def _blockwise_backward(blocks, saved, cotangents):
  q, k, v, limit, out, lse = saved
  d_out, d_lse = cotangents
  size, keys = q.shape[1], k.shape[2]
  blocks_q, block_q = _blocks(size, blocks[0])
  blocks_k, block_k = _blocks(keys, blocks[1])
  k_pad = _pad(k, blocks_k * block_k, 2)
  v_pad = _pad(v, blocks_k * block_k, 2)
  d_out = d_out.astype(jnp.float32)
  delta = (d_out * out.astype(jnp.float32)).sum(-1) - d_lse
  scale = _scale(q)
  # A query that sees nothing: far under 0, its masked scores weigh nothing.
  lse = jnp.maximum(lse, _LEAST)
  parts = [
    _split(_pad(x, blocks_q * block_q, 1), blocks_q)
    for x in (q, limit, lse, delta, d_out)
  ]

  def one(carry, part):
    queries, limit_i, *rest = part
    grouped, ends = _group(queries, k.shape[1]), _ends(queries, k, limit_i)
    lse_g, delta_g, d_out_g = (_group(x, k.shape[1]) for x in rest)
    d_out_g = d_out_g.astype(v.dtype)

    def body(i, inner):
      d_q, d_k, d_v = inner
      start = i * block_k
      keys_i = _block(k_pad, start, block_k)
      scores = _scores(grouped, keys_i, ends, start)
      weights = jnp.exp(scores - lse_g[..., None])
      d_weights = _product(
        "bkmc,bksc->bkms", d_out_g, _block(v_pad, start, block_k)
      )
      d_scores = weights * (d_weights - delta_g[..., None]) * scale
      d_scores = d_scores.astype(k.dtype)
      weights = weights.astype(v.dtype)
      d_q += _product("bkms,bksc->bkmc", d_scores, keys_i)
      d_k = _add(d_k, _product("bkms,bkmc->bksc", d_scores, grouped), start)
      d_v = _add(d_v, _product("bkms,bkmc->bksc", weights, d_out_g), start)
      return d_q, d_k, d_v

    d_q, d_k, d_v = _each_block(
      blocks_k,
      limit_i,
      block_k,
      body,
      (jnp.zeros(grouped.shape, jnp.float32), *carry),
    )
    return (d_k, d_v), _ungroup(d_q, queries.shape)

  zeros = jnp.zeros(k_pad.shape, jnp.float32)
  (d_k, d_v), d_q = jax.lax.scan(one, (zeros, zeros), tuple(parts))
  return (
    _join(d_q)[:, :size].astype(q.dtype),
    d_k[:, :, :keys].astype(k.dtype),
    d_v[:, :, :keys].astype(v.dtype),
    None,
  )


blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _product(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _scores(grouped, k, ends, start):
  """Scaled scores `[B, K, M, S]`; `_MASKED` at keys past their end."""
  scores = _product("bkmc,bksc->bkms", grouped, k)
  seen = start + jnp.arange(k.shape[2]) < ends[..., None]
  return jnp.where(seen, scores * _scale(k), _MASKED)


def _scale(x):
  """What scores are multiplied by: a division a score costs time."""
  return 1.0 / math.sqrt(x.shape[-1])


def _group(x, kv_heads):
  """`[B, Q, H, ...]` to `[B, K, Q * H/K, ...]`."""
  b, n, heads = x.shape[:3]
  x = x.reshape(b, n, kv_heads, heads // kv_heads, *x.shape[3:])
  return jnp.moveaxis(x, 2, 1).reshape(b, kv_heads, -1, *x.shape[4:])


def _ungroup(x, shape):
  """The inverse of `_group`, to `shape`."""
  b, n, heads = shape[:3]
  x = x.reshape(b, x.shape[1], n, heads // x.shape[1], *shape[3:])
  return jnp.moveaxis(x, 1, 2).reshape(shape)


def _ends(q, k, limit):
  """Limits `[B, Q]` as those of the grouped queries, `[B, 1, M]`."""
  return jnp.repeat(limit, q.shape[2] // k.shape[1], axis=1)[:, None]


def _fitting_blocks(q):
  """Queries and keys of a block whose scores stay in the caches."""
  if jax.default_backend() != "cpu":
    return 512, 512
  most = math.isqrt(_CPU_SCORES // (q.shape[0] * q.shape[2]))
  return (min(512, max(128, most // 64 * 64)),) * 2


def _blocks(size, block):
  """How many blocks, and their size: equal parts of at most `block`."""
  count = max(1, -(-size // block))
  return count, max(1, -(-size // count))


def _each_block(count, limit, block, body, carry):
  """`body(i, carry)` for each of `count` blocks of keys that a query sees."""
  if count == 1:  # No loop for XLA to copy the carry in and out of.
    return body(0, carry)
  seen = (jnp.max(limit) + block - 1) // block
  return jax.lax.fori_loop(0, seen, body, carry)


def _block(x, start, size):
  return jax.lax.dynamic_slice_in_dim(x, start, size, 2)


def _pad(x, size, axis):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths)


def _split(x, count):
  """`[B, count*n, ...]` to `[count, B, n, ...]`."""
  x = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _join(x):
  """The inverse of `_split`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _add(total, part, start):
  """Adds `part` to the keys of `total` from `start` on."""
  old = _block(total, start, part.shape[2])
  return jax.lax.dynamic_update_slice_in_dim(
    total, old + part.astype(total.dtype), start, 2
  )
