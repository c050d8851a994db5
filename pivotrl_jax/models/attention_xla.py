"""`attention.attend` in plain JAX, for every backend: two bodies.

- `dense` forms all scores at once: the reference of the tests;
- `blockwise` walks blocks of keys with an online softmax, keeps no scores for
  the derivatives, of either mode, and skips the blocks that no query can see.

`decode` is for queries of one token each.
"""

import functools
import math

import jax
import jax.numpy as jnp

from pivotrl_jax.models import backend
from pivotrl_jax.models import sums

_CPU_SCORES = 1 << 21  # Scores of a block, over batch and heads.
# Of keys that are not seen, and the least maximum of a row: finite, so that
# differences never make a NaN, and so far apart that exp gives exactly 0.
MASKED, LEAST = -1e30, -1e29


def dense(q, k, v, place, ends=None):
  """`attend` with all scores `[B, K, Q*H/K, S]` formed at once.

  Without `ends` all that follows a key sees it.
  """
  grouped = group(q, k.shape[1])
  scores = _scores(grouped, k, group_places(q, k, place), ends, 0)
  top = jnp.maximum(jax.lax.stop_gradient(scores.max(-1)), LEAST)
  weights = jnp.exp(scores - top[..., None])
  total = weights.sum(-1)
  safe = jnp.where(total > 0, total, 1.0)
  out = product("bkms,bksc->bkmc", weights.astype(v.dtype), v)
  lse = jnp.where(total > 0, top + jnp.log(safe), MASKED)
  return (
    ungroup(out / safe[..., None], q.shape).astype(q.dtype),
    ungroup(lse, q.shape[:3]),
  )


def with_derivatives(out, saved, tangents, *, forward, backward):
  """What a `custom_jvp` rule returns whose transpose is written by hand.

  A `custom_vjp` has no forward mode; here both passes recompute from `saved`.

  Args:
    out: the primal results.
    saved: what both passes need.
    tangents: of what is differentiated; the others follow from them.
    forward: (saved, tangents) -> tangents of `out`.
    backward: (saved, cotangents of `out`) -> cotangents, like `tangents`.
  """
  return out, jax.custom_derivatives.linear_call(
    forward, backward, saved, tangents
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def blockwise(q, k, v, place, ends, blocks=None):
  """`attend` by blocks with an online softmax; scores are recomputed.

  `blocks` are the most queries and keys of one; by default what fits the
  caches of the backend.
  """
  return _blockwise_forward(q, k, v, place, ends, blocks)[0]


def _blockwise_forward(q, k, v, place, ends, blocks):
  size = q.shape[1]
  blocks = blocks or _fitting_blocks(q)
  blocks_q, block_q = _blocks(size, blocks[0])
  blocks_k, block_k = _blocks(k.shape[2], blocks[1])
  k_pad = pad(k, blocks_k * block_k, 2)
  v_pad = pad(v, blocks_k * block_k, 2)
  ends_pad = pad(ends, blocks_k * block_k, 1)
  parts = [
    _split(pad(x, blocks_q * block_q, 1), blocks_q) for x in (q, place + 1)
  ]

  def one(part):
    queries, after = part
    return _walk(queries, k_pad, v_pad, after - 1, ends_pad, block_k)

  out, lse = jax.lax.map(one, tuple(parts))
  out, lse = _join(out)[:, :size], _join(lse)[:, :size]
  return (out, lse), (q, k, v, place, ends, out, lse)


def decode(q, k, v, place, ends):
  """`attend` of a branch's one query each, without a derivative.

  Args:
    q: `[B, N, H, C]`, the branches in the order of their places.
    k: `[B, K, C, S]`, as the product reads them fastest.
    v, place, ends: see `attend`.
  """
  return _walk(q, k, v, place, ends, v.shape[2], keys="bkcs")


def _walk(q, k, v, place, ends, block, *, keys="bksc"):
  """`attend` by an online softmax over blocks of keys, whose axes are `keys`.

  Blocks that no query sees are left out.
  """
  grouped = group(q, k.shape[1])
  at = group_places(q, k, place)

  def body(first, carry):
    top, total, out = carry
    scores = _scores(
        grouped, _block(k, first, block, keys.index("s")), at,
        _block(ends, first, block, 1), first, keys=keys,
    )  # fmt: skip
    new_top = jnp.maximum(top, scores.max(-1))
    weights = jnp.exp(scores - new_top[..., None])
    decay = jnp.exp(top - new_top)
    out = out * decay[..., None] + product(
      "bkms,bksc->bkmc", weights.astype(v.dtype), _block(v, first, block)
    )
    return new_top, total * decay + weights.sum(-1), out

  shape = grouped.shape[:-1]
  top, total, out = _each_block(
    place,
    ends,
    block,
    body,
    (
      jnp.full(shape, LEAST, jnp.float32),
      jnp.zeros(shape, jnp.float32),
      jnp.zeros(grouped.shape, jnp.float32),
    ),
  )
  safe = jnp.where(total > 0, total, 1.0)
  out = (out / safe[..., None]).astype(q.dtype)
  lse = jnp.where(total > 0, top + jnp.log(safe), MASKED)
  return ungroup(out, q.shape), ungroup(lse, q.shape[:3])


@blockwise.defjvp
def _blockwise_jvp(blocks, primals, tangents):
  out, saved = _blockwise_forward(*primals, blocks)
  return with_derivatives(
    out, saved, tangents[:3],
    forward=functools.partial(_blockwise_tangent, blocks),
    backward=functools.partial(_blockwise_backward, blocks),
  )  # fmt: skip


def _blockwise_tangent(blocks, saved, tangents):
  q, k, v, place, ends, out, lse = saved
  d_q, d_k, d_v = tangents
  size = q.shape[1]
  blocks = blocks or _fitting_blocks(q)
  blocks_q, block_q = _blocks(size, blocks[0])
  blocks_k, block_k = _blocks(k.shape[2], blocks[1])
  padded = [pad(x, blocks_k * block_k, 2) for x in (k, v, d_k, d_v)]
  ends_pad = pad(ends, blocks_k * block_k, 1)
  # A query that sees nothing: far under 0, its masked scores weigh nothing.
  lse = jnp.maximum(lse, LEAST)
  parts = [
    _split(pad(x, blocks_q * block_q, 1), blocks_q)
    for x in (q, place + 1, lse, d_q)
  ]

  def one(part):
    queries, after, lse_i, d_q_i = part
    grouped, lse_g, d_q_g = (
      group(x, k.shape[1]) for x in (queries, lse_i, d_q_i)
    )
    at = group_places(queries, k, after - 1)

    def body(first, carry):
      d_lse, d_out = carry
      k_i, v_i, d_k_i, d_v_i = (_block(x, first, block_k) for x in padded)
      ends_i = _block(ends_pad, first, block_k, 1)
      scores = _scores(grouped, k_i, at, ends_i, first)
      weights = jnp.exp(scores - lse_g[..., None])
      d_scores = product("bkmc,bksc->bkms", d_q_g, k_i)
      d_scores += product("bkmc,bksc->bkms", grouped, d_k_i)
      d_scores *= weights * scale(q)
      d_out += product("bkms,bksc->bkmc", d_scores.astype(v.dtype), v_i)
      d_out += product("bkms,bksc->bkmc", weights.astype(v.dtype), d_v_i)
      return d_lse + d_scores.sum(-1), d_out

    d_lse, d_out = _each_block(
      after - 1,
      ends_pad,
      block_k,
      body,
      (
        jnp.zeros(lse_g.shape, jnp.float32),
        jnp.zeros(grouped.shape, jnp.float32),
      ),
    )
    return ungroup(d_out, queries.shape), ungroup(d_lse, queries.shape[:3])

  d_out, d_lse = jax.lax.map(one, tuple(parts))
  d_out, d_lse = _join(d_out)[:, :size], _join(d_lse)[:, :size]
  return (d_out - d_lse[..., None] * out).astype(q.dtype), d_lse


def _blockwise_backward(blocks, saved, cotangents):
  q, k, v, place, ends, out, lse = saved
  d_out, d_lse = cotangents
  size, keys = q.shape[1], k.shape[2]
  blocks = blocks or _fitting_blocks(q)
  blocks_q, block_q = _blocks(size, blocks[0])
  blocks_k, block_k = _blocks(keys, blocks[1])
  k_pad = pad(k, blocks_k * block_k, 2)
  v_pad = pad(v, blocks_k * block_k, 2)
  ends_pad = pad(ends, blocks_k * block_k, 1)
  d_out = d_out.astype(jnp.float32)
  delta = sums.dot(d_out, out.astype(jnp.float32)) - d_lse
  factor = scale(q)
  # A query that sees nothing: far under 0, its masked scores weigh nothing.
  lse = jnp.maximum(lse, LEAST)
  parts = [
    _split(pad(x, blocks_q * block_q, 1), blocks_q)
    for x in (q, place + 1, lse, delta, d_out)
  ]

  def one(carry, part):
    queries, after, lse_i, delta_i, d_out_i = part
    grouped = group(queries, k.shape[1])
    at = group_places(queries, k, after - 1)
    lse_g, delta_g, d_out_g = (
      group(x, k.shape[1]) for x in (lse_i, delta_i, d_out_i)
    )
    d_out_g = d_out_g.astype(v.dtype)

    def body(first, inner):
      d_q, d_k, d_v = inner
      keys_i = _block(k_pad, first, block_k)
      scores = _scores(
        grouped, keys_i, at, _block(ends_pad, first, block_k, 1), first
      )
      weights = jnp.exp(scores - lse_g[..., None])
      d_weights = product(
        "bkmc,bksc->bkms", d_out_g, _block(v_pad, first, block_k)
      )
      d_scores = weights * (d_weights - delta_g[..., None]) * factor
      d_scores = d_scores.astype(k.dtype)
      weights = weights.astype(v.dtype)
      d_q += product("bkms,bksc->bkmc", d_scores, keys_i)
      d_k = _add(d_k, product("bkms,bkmc->bksc", d_scores, grouped), first)
      d_v = _add(d_v, product("bkms,bkmc->bksc", weights, d_out_g), first)
      return d_q, d_k, d_v

    d_q, d_k, d_v = _each_block(
      after - 1,
      ends_pad,
      block_k,
      body,
      (jnp.zeros(grouped.shape, jnp.float32), *carry),
    )
    return (d_k, d_v), ungroup(d_q, queries.shape)

  zeros = jnp.zeros(k_pad.shape, jnp.float32)
  (d_k, d_v), d_q = jax.lax.scan(one, (zeros, zeros), tuple(parts))
  return (
    _join(d_q)[:, :size].astype(q.dtype),
    d_k[:, :, :keys].astype(k.dtype),
    d_v[:, :, :keys].astype(v.dtype),
  )


def product(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _scores(grouped, k, place, ends, first, *, keys="bksc"):
  """Scaled scores `[B, K, M, S]` of keys from `first` on; else `MASKED`."""
  scores = product(f"bkmc,{keys}->bkms", grouped, k)
  place = place[..., None]
  visible = first + jnp.arange(scores.shape[-1]) <= place
  if ends is not None:
    visible &= place < ends[:, None, None]
  return jnp.where(visible, scores * scale(grouped), MASKED)


def scale(x):
  """What scores are multiplied by: a division a score costs time."""
  return 1.0 / math.sqrt(x.shape[-1])


def group(x, kv_heads):
  """`[B, Q, H, ...]` to `[B, K, Q * H/K, ...]`."""
  b, n, heads = x.shape[:3]
  x = x.reshape(b, n, kv_heads, heads // kv_heads, *x.shape[3:])
  return jnp.moveaxis(x, 2, 1).reshape(b, kv_heads, -1, *x.shape[4:])


def ungroup(x, shape):
  """The inverse of `group`, to `shape`."""
  b, n, heads = shape[:3]
  x = x.reshape(b, x.shape[1], n, heads // x.shape[1], *shape[3:])
  return jnp.moveaxis(x, 1, 2).reshape(shape)


def group_places(q, k, place):
  """Places `[B, Q]` as those of the grouped queries, `[B, 1, M]`."""
  return jnp.repeat(place, q.shape[2] // k.shape[1], axis=1)[:, None]


def _fitting_blocks(q):
  """Queries and keys of a block whose scores stay in the caches."""
  if backend.name() != "cpu":
    return 512, 512
  most = math.isqrt(_CPU_SCORES // (q.shape[0] * q.shape[2]))
  return (min(512, max(128, most // 64 * 64)),) * 2


def _blocks(size, block):
  """How many blocks, and their size: equal parts of at most `block`."""
  count = max(1, -(-size // block))
  return count, max(1, -(-size // count))


def _each_block(place, ends, block, body, carry):
  """`body(first, carry)` for each block of keys that a query sees; the first
  one begins with the first such key, as far as the last one then has room.
  """
  size = ends.shape[1]
  if size == block:  # No loop for XLA to copy the carry in and out of.
    return body(0, carry)
  lowest = jnp.min(place, where=place >= 0, initial=jnp.iinfo(jnp.int32).max)
  keys = jnp.arange(size)
  seen = (ends > lowest).any(0) & (keys <= place.max())
  begin = jnp.argmax(seen)
  end = jnp.max(keys + 1, where=seen, initial=0)
  begin = jnp.minimum(begin, size - -(-(end - begin) // block) * block)
  seen = jnp.roll(seen, -begin).reshape(-1, block).any(1)
  order = jnp.argsort(~seen, stable=True)
  return jax.lax.fori_loop(
    0,
    seen.sum(),
    lambda i, carry: body(begin + order[i] * block, carry),
    carry,
  )


def _block(x, start, size, axis=2):
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def pad(x, size, axis):
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
